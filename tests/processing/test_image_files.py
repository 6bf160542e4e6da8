"""Folders, patterns and lists of images: closed folders, loops of links, deep nesting, pipes."""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from condinst_infer.errors import InputError
from condinst_infer.processing.image_files import (
    MAX_LIST_BYTES,
    files_below,
    files_that_match,
    image_paths,
    paths_in_list,
)
from condinst_infer.system.paths import Unreadable
from tests.support.permissions import under_permissions

NAMES = ("a.png", "b/a.png", "b/c/d.png", "b/[x].png", ".hidden/a.png", "b/.hidden.png", "é/a.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*NAMES, os.fsdecode(b"b/\xff.png"), "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b/link").symlink_to("../b")  # a loop of folders
    (tmp_path / "b/other").symlink_to("../é")
    (tmp_path / "b/loop.png").symlink_to("loop.png")
    (tmp_path / "b/gone.png").symlink_to("nothing.png")
    os.mkfifo(tmp_path / "b/fifo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.png", "*/*.png", "**/*.png", "b/**/*.png", "**", "b/**", "?.png", "b/[[]x].png"),
        *("b/*", "*/a.png", "**/a.png", ".*/*.png", "[!b]*/*.png", "nothing/*.png"),
        *("**/c/*", "**/**/d.png", "b/.*", "é/?.png", "./*.png", "{root}/**/*.png", "{root}/*/*"),
    ],
)
def test_a_pattern_names_what_glob_names(pattern: str, folder: Path) -> None:
    """Each file once: glob goes round loops of links until the system ends it."""
    pattern = pattern.format(root=folder)
    problems: list[Unreadable] = []
    found = files_that_match(pattern, problems)
    expected = {
        path
        for name in glob.glob(pattern, recursive=True)  # noqa: PTH207 - the reference
        if (path := Path(name)).is_file()
    }
    assert {path.resolve() for path in found} == {path.resolve() for path in expected}
    assert len({path.resolve() for path in found}) == len(found) and set(found) <= expected
    assert found == sorted(found) and problems == []


def test_closed_folders_are_told_and_the_others_searched(folder: Path) -> None:
    closed = folder / "b/c"
    closed.chmod(0)
    for find in (
        lambda problems: files_below(folder, (".png",), problems),
        lambda problems: files_that_match("**/*.png", problems),
        lambda problems: files_that_match("b/*/d.png", problems),
    ):
        problems: list[Unreadable] = []
        found = under_permissions(lambda: find(problems))  # noqa: B023 - called at once
        assert len(problems) == 1 and problems[0].error.endswith(
            "can't be read: Permission denied."
        )
        assert "b/c" in problems[0].path and Path("b/c/d.png") not in found
    for source in (folder, "**/*.png"):
        with pytest.raises(InputError, match="b/c can't be read: Permission denied"):
            under_permissions(lambda: image_paths(source))  # noqa: B023 - called at once
    closed.chmod(0o700)
    below = files_below(folder, (".png",), [])
    assert len(below) == len(NAMES) + 1 and folder / "b/c/d.png" in below


@pytest.mark.slow
def test_folders_may_be_nested_deeper_than_calls(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() + 100
    program = (
        f"import os, sys\nfor _ in range({depth}): os.mkdir('d'); os.chdir('d')\nopen('a.png', 'w')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    try:
        problems: list[Unreadable] = []
        (found,) = files_below(tmp_path, (".png",), problems)
        assert len(found.parts) == len(tmp_path.parts) + depth + 1 and problems == []
        assert files_that_match(f"{tmp_path}/**/*.png", problems) == [found] and problems == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree calls itself


def test_a_list_names_files_beside_it(folder: Path) -> None:
    (folder / "b/list.txt").write_bytes(b"\xef\xbb\xbfc/d.png\r\n\n \xff.png \n/x/y.png\n")
    odd = os.fsdecode(b"b/\xff.png")
    assert paths_in_list("b/list.txt") == [Path("b/c/d.png"), Path(odd), Path("/x/y.png")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no path in list.txt"),
        (b" \n\n", "there is no path in list.txt"),
        (b"a.png\n\x89PNG\0\0", "list.txt is no list of paths: line 2 holds a null character"),
        (MAX_LIST_BYTES + 1, "list.txt is too long: more than 67108864 bytes"),
    ],
)
def test_a_list_that_is_none(content: bytes | int, said: str, folder: Path) -> None:
    with (folder / "list.txt").open("wb") as file:
        if isinstance(content, int):
            file.truncate(content)
        else:
            file.write(content)
    with pytest.raises(InputError, match=said):
        paths_in_list("list.txt")


def test_a_list_comes_through_an_open_pipe(photos: Path, demo_folder: Path, tmp_path: Path) -> None:
    """As a shell gives it for `| condinst ... /dev/stdin` and for `<(command)`."""
    shutil.copy(photos / "a.png", tmp_path / "x.png")
    read, write = os.pipe()
    os.write(write, b"x.png\nphotos/12.jpg\n")
    os.close(write)
    program = (
        "from pathlib import Path\nfrom condinst_infer.cli.sources import image_files\n"
        f"print(*[file.path for file in image_files(['/dev/stdin', '/dev/fd/{read}'], Path('o'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b"photos/a.png\n",
        capture_output=True,
        cwd=tmp_path,
        pass_fds=[read],
        check=True,
    )
    os.close(read)
    assert done.stdout == b"photos/a.png x.png photos/12.jpg\n"
