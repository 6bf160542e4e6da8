"""The files of this repository, with git or without it."""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

# text, but written by a program; the last two by setuptools into a source distribution
GENERATED = (".svg", ".ptx", "PKG-INFO", "setup.cfg")


def source_files(root: Path, *, untracked: bool = False) -> list[str]:
    """Paths below `root`, sorted: the tracked files, and with `untracked` those not yet added.

    Without git, as in an unpacked source distribution, all files that .gitignore does not name.
    """
    if (root / ".git").exists():
        others = ["--others", "--exclude-standard"] if untracked else []
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", *others]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().split()]
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        str(path)
        for path in found
        if not any(fnmatch(part, pattern) for part in path.parts for pattern in ignored)
    )


def text_files(root: Path) -> list[str]:
    """Paths of the files that people write: no picture, no model, no output of a program."""
    return [
        name
        for name in source_files(root, untracked=True)
        if not name.endswith(GENERATED) and b"\0" not in (root / name).read_bytes()[:8192]
    ]
