"""What may be written where: every way of writing on everything that may be in the place."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from condinst_infer.errors import ConfigError, InputError
from condinst_infer.system import outputs
from condinst_infer.system.outputs import (
    atomic_file,
    atomic_files,
    check_not_input,
    check_place,
    is_temporary,
    new_folder,
    text_file,
    write_json,
    write_link,
    write_text,
)
from tests.support.permissions import under_permissions

OLD, NEW = "what was there before", "what is written"
Write = Callable[[Path], object]


def whole(path: Path) -> None:
    with atomic_file(path) as part:
        part.write_text(NEW)


def second_of_two(path: Path) -> None:
    with atomic_files(path.with_name("beside"), path) as parts:
        for part in parts:
            part.write_text(NEW)


FILES: dict[str, Write] = {"whole": whole, "second of two": second_of_two}
TEXTS: dict[str, Write] = {"text": lambda path: write_text(path, NEW)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[*FILES, *TEXTS])
def write(request: pytest.FixtureRequest) -> Write:
    return (FILES | TEXTS)[request.param]


@pytest.fixture(params=FILES)
def write_file(request: pytest.FixtureRequest) -> Write:
    return FILES[request.param]


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(
    write: Write, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    old = tmp_path / "old"
    old.write_text(OLD)
    old.chmod(0o604)
    write(old)
    assert (old.read_text(), stat.S_IMODE(old.stat().st_mode)) == (NEW, 0o604)


def test_a_library_that_makes_the_file_anew_does_not_change_its_mode(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_the_target_of_a_link_is_written(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("there", "not there"):
        link, target = tmp_path / f"link to {name}", folder / name
        link.symlink_to(target)
        if name == "there":
            target.write_text(OLD)
        write(link)
        assert link.is_symlink() and target.read_text() == NEW
    assert names(folder) == ["not there", "there"]


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text(OLD)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket has at most 108 bytes
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


def put_device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        path.symlink_to("/dev/null")


THINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (put_folder, "is a folder; give the name of a file"),
    "socket": (put_socket, "is a socket; give the name of a file"),
    "FIFO": (os.mkfifo, "is a FIFO; give the name of a file"),
    "device": (put_device, "is a device; give the name of a file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_refused_and_stays(
    thing: str, write_file: Write, tmp_path: Path
) -> None:
    put, said = THINGS[thing]
    path = tmp_path / "place"
    put(path)
    before = path.lstat()
    for attempt in (write_file, lambda path: check_place(path, "file")):
        with pytest.raises(InputError, match=said):
            attempt(path)
    assert path.lstat() == before and names(tmp_path) == ["place"]


@pytest.mark.parametrize("thing", ["folder", "socket", "link to itself"])
def test_text_goes_through_neither_of_these(thing: str, tmp_path: Path) -> None:
    put, said = THINGS[thing]
    put(tmp_path / "place")
    with pytest.raises(InputError, match=said):
        write_text(tmp_path / "place", NEW)
    assert names(tmp_path) == ["place"]


def test_text_goes_through_a_device_and_a_fifo(tmp_path: Path) -> None:
    put_device(tmp_path / "null")
    write_text(tmp_path / "null", NEW)
    write_text(Path("/dev/null"), NEW)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE, text=True) as reader:
        write_json(tmp_path / "fifo", [1, 2])
        assert reader.communicate()[0] == "[1, 2]\n"
    assert names(tmp_path) == ["fifo", "null"]
    with pytest.raises(InputError, match="/dev/full can't be written: No space left on device"):
        write_text(Path("/dev/full"), NEW)


def test_text_to_stdout_is_written_where_that_stands(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom condinst_infer.system.outputs import write_text\n"
        "print('before', flush=True)\nwrite_text(Path('/dev/stdout'), 'text\\n')\nprint('after')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"


@pytest.mark.parametrize("length", [200, 247, 254, 255])
def test_long_names_are_written(length: int, write: Write, tmp_path: Path) -> None:
    for name in ("a" * length, "a" * (length - 4) + ".jpg", "ä" * (length // 2), f".{'b' * 99}.c"):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == NEW


def test_a_name_that_is_too_long_or_not_one_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written: File name too long"):
        write(tmp_path / ("a" * 256))
    with pytest.raises(InputError, match="null"):
        write(tmp_path / "a\0b")
    (tmp_path / "file").write_text(OLD)
    with pytest.raises(InputError, match="can't be written: .*file is a file, not a folder"):
        write(tmp_path / "file" / "below")
    assert names(tmp_path) == ["file"]


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_only(path: Path) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def other_file(path: Path) -> None:
    (path.parent / "missing").read_bytes()


def of_a_library(path: Path) -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (full, "old can't be written: No space left on device"),
        (read_only, "old can't be written: Read-only file system"),
        (of_a_library, "old can't be written: No space left on device"),
        (other_file, "missing: No such file or directory"),
    ],
)
def test_a_failure_leaves_what_was_there(
    fail: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.write_text(OLD)
    with pytest.raises(InputError, match=said), atomic_files(tmp_path / "new", old) as parts:
        parts[0].write_text(NEW)
        fail(parts[1])
    assert (old.read_text(), names(tmp_path)) == (OLD, ["old"])


def test_a_library_that_says_nothing_of_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_is_full", lambda part: True)
    with pytest.raises(InputError, match="No space left on device"), atomic_file(tmp_path / "a"):
        raise RuntimeError("file write failed")
    monkeypatch.setattr(outputs, "_is_full", lambda part: False)
    with pytest.raises(RuntimeError, match="another"), atomic_file(tmp_path / "a"):
        raise RuntimeError("another")


def test_of_two_files_the_message_says_which_is_there(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(InputError, match=rf"{second} is a folder.*{first} was written"):
        with atomic_files(first, second) as parts:
            for part in parts:
                part.write_text(NEW)
            second.mkdir()
    assert first.read_text() == NEW and second.is_dir() and len(names(tmp_path)) == 2


def test_an_interrupt_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    for write in (atomic_file, new_folder):
        with pytest.raises(KeyboardInterrupt) as caught, write(tmp_path / "a"):
            raise KeyboardInterrupt
        assert caught.value.__notes__ == [f"{tmp_path / 'a'} was not written"]
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from condinst_infer.system.outputs import atomic_file, new_folder
with atomic_file(Path(sys.argv[1])) as part, new_folder(Path(sys.argv[2])) as folder:
    part.write_text("half")
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, tmp_path / "a.jpg", tmp_path / "b"]
    assert subprocess.run(words).returncode == -9
    left = names(tmp_path)
    assert len(left) == 2 and all(map(is_temporary, left))
    (tmp_path / outputs._PREFIX).write_text("of somebody else")
    alive = tmp_path / f"{outputs._of_host()}{os.getppid()}-0.jpg"
    alive.write_text("of a process that lives")
    outputs._swept.discard(tmp_path)
    whole(tmp_path / "a.jpg")
    assert names(tmp_path) == sorted([outputs._PREFIX, alive.name, "a.jpg"])


def test_a_link_replaces_a_link_only(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for to in ("one", "two"):
        write_link(link, to)
        assert link.readlink() == Path(to)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_link(tmp_path / "folder", "one")


def test_what_may_not_be_written_is_known_before(tmp_path: Path) -> None:
    folder, old = tmp_path / "closed", tmp_path / "old"
    folder.mkdir(0o500)
    old.write_text(OLD)
    old.chmod(0o400)

    def attempts() -> None:
        for kind in ("file", "text", "folder"):
            with pytest.raises(InputError, match="Permission denied"):
                check_place(folder / "below" / "a", kind)
        for attempt in (whole, lambda path: check_place(path, "file")):
            with pytest.raises(InputError, match="Permission denied"):
                attempt(old)

    under_permissions(attempts)
    assert old.read_text() == OLD


def test_places_are_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(OLD)
    for kind in ("file", "text", "folder"):
        check_place(tmp_path / "below" / "a", kind)
        with pytest.raises(InputError, match="is a file, not a folder"):
            check_place(tmp_path / "file" / "below" / "a", kind)
    with pytest.raises(InputError, match="file is a file; give the name of a folder"):
        check_place(tmp_path / "file", "folder")
    for path in (Path("/dev/null"), Path("/dev/stdout"), tmp_path / "file"):
        check_place(path, "text")
    assert names(tmp_path) == ["file"]


def test_an_output_is_no_input(tmp_path: Path) -> None:
    model, images = tmp_path / "m.onnx", tmp_path / "images"
    images.mkdir()
    for path in (model, images / "a.jpg", images / "notes.json"):
        path.write_text(OLD)
    (tmp_path / "link").symlink_to(model)
    os.link(model, tmp_path / "same file")
    inputs = [model, images, tmp_path / "missing", Path("camera:0")]
    for path in (model, tmp_path / "link", tmp_path / "same file", images / "a.jpg"):
        with pytest.raises(ConfigError, match="would overwrite the input"):
            check_not_input(path, inputs, [".jpg"])
    for path in (images / "notes.json", tmp_path / "new", images, Path("/dev/null")):
        check_not_input(path, [*inputs, Path("/dev/null")], [".jpg"])


def test_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(OLD)
    with pytest.raises(ZeroDivisionError), text_file(path) as file:
        file.write(NEW)
        raise ZeroDivisionError
    assert (path.read_text(), names(tmp_path)) == (OLD, ["a.json"])
