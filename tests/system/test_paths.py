"""Every reader of files says in one sentence why it can't read; nothing is waited for."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from condinst_infer import load
from condinst_infer.datasets.coco import read_json
from condinst_infer.errors import CheckpointError, CondInstError, InputError, ModelFileError
from condinst_infer.processing.image_files import image_paths
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.system import paths
from condinst_infer.trt import sidecar
from condinst_infer.video.sources import open_source
from tests.support.odd_things import THINGS
from tests.support.permissions import under_permissions

READERS: list[tuple[str, type[CondInstError], Callable[[Path], Any]]] = [
    (".jpg", InputError, read_image),
    (".jpg", InputError, lambda path: read_image(str(path))),
    (".mp4", InputError, lambda path: open_source(path, reconnect=0, max_pixels=10**6)),
    ("", InputError, lambda path: open_source(path, reconnect=0, max_pixels=10**6)),
    ("", InputError, image_paths),
    (".json", InputError, read_json),
    (".json", InputError, Instances.from_json),
    (".onnx", ModelFileError, load),
    (".onnx", ModelFileError, detector_from_full),
    (".engine", ModelFileError, load),
    (".engine", ModelFileError, sidecar.read),
    (".pth", CheckpointError, lambda path: paths.check_readable_file(path, CheckpointError)),
]


@pytest.mark.parametrize("kind", THINGS)
def test_a_reader_says_what_is_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, put = THINGS[kind]
    for number, (suffix, error, read) in enumerate(READERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        put(folder / f"{name}{suffix}")
        if suffix == ".pth" and kind == "empty":
            continue
        with pytest.raises(error) as raised:
            under_permissions(lambda: read(Path(f"{name}{suffix}")))  # noqa: B023 - called at once
        text = str(raised.value)
        assert "\n" not in text and "\0" not in text and len(text) < 1500
        if kind == "closed folder":
            (folder / "closed").chmod(0o700)


@pytest.mark.parametrize("kind", THINGS)
def test_questions_have_an_answer_or_an_error(kind: str, tmp_path: Path) -> None:
    """Nothing there is an answer; what can't be known is an error, of the class that is asked."""
    name, put = THINGS[kind]
    put(tmp_path / name) if kind != "socket" else None
    there = {"FIFO", "/dev/zero", "/dev/null", "folder", "empty", "unreadable"}
    unknown = {"256 bytes", "5000 bytes", "long folders", "NUL", "closed folder", "loop"}
    for question in (paths.is_file, paths.is_folder, paths.exists):
        if kind in unknown:
            with pytest.raises(CheckpointError):
                under_permissions(lambda: question(tmp_path / name, CheckpointError))  # noqa: B023
            continue
        known = {paths.is_folder: {"folder"}, paths.is_file: {"empty", "unreadable"}}
        answer = under_permissions(lambda: question(tmp_path / name))  # noqa: B023
        assert answer is (kind in known.get(question, there))
    if kind == "closed folder":
        (tmp_path / "closed").chmod(0o700)


def test_text_is_read_with_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert paths.read_text(path) == "abc" and paths.read_bytes(path, max_bytes=6)[3:] == b"abc"
    with pytest.raises(ModelFileError, match="a.txt is too long: more than 5 bytes"):
        paths.read_bytes(path, ModelFileError, max_bytes=5)
    path.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="a.txt is not text in UTF-8: byte 2 is 0xff"):
        paths.read_text(path)


def test_an_open_pipe_is_read_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"0123456789")
    os.close(write)
    monkeypatch.setattr(paths, "MAX_PIPED_BYTES", 9)
    assert paths.is_open_pipe(f"/dev/fd/{read}") and not paths.is_open_pipe("/dev/fd/987654")
    with pytest.raises(InputError, match=rf"/dev/fd/{read} is too long: more than 9 bytes"):
        paths.read_text_bytes(f"/dev/fd/{read}")
    with pytest.raises(InputError, match="is a FIFO, not a file"):
        paths.read_bytes(f"/dev/fd/{read}")
    os.close(read)


def test_names_in_messages_are_short_and_printable() -> None:
    assert paths.shown("a\n\x1b[31m\udcff.jpg") == r"a\n\x1b[31m\xff.jpg"
    assert paths.shown("ä日") == "ä日" and paths.printable("\ud800") == r"\ud800"
    long = paths.shown("x" * 5000)
    assert len(long) <= paths.SHOWN and "..." in long


def test_errors_of_the_system_while_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="a can't be read: Input/output error"):
        with paths.open_file(tmp_path / "a"):
            raise OSError(5, "Input/output error")
    with pytest.raises(MemoryError), paths.open_file(tmp_path / "a"):
        raise MemoryError  # of the work on the content


def test_no_file_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with pytest.raises(InputError):
            paths.read_bytes(tmp_path / "fifo")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
