"""Every verb on a disk that is full or read-only: one sentence, and nothing half written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "condinst_infer/data"
pytestmark = pytest.mark.slow
FULL, FIXED = "No space left on device", "Read-only file system"
MOUNT = 'mount -t tmpfs -o size={size} none "$0" && cd "$0" && {before} && exec "$@"'
# words, and the bytes of a disk on which they begin to write and can't end
VERBS = {
    "demo": (["demo", "-o", "a.png"], "64k"),
    "bench": (["bench", "nuclei", "--size", "64x64", "--repeats", "1", "-o", "a.json"], "4k"),
    "export": (["export", DATA / "nuclei.safetensors", "-o", "a.onnx"], "1m"),
    "rewritten": (["export", DATA / "nuclei.onnx", "-o", "a.onnx", "--standard-ops"], "1m"),
    "triton": (["export", DATA / "nuclei.onnx", "--triton", "a"], "1m"),
    "predict": (["predict", "nuclei", DATA / "nuclei.jpg", "-o", "a"], "16k"),
    "capi": (["capi", "build", "-o", "a"], "8k"),
}


def on_tmpfs(folder: Path, size: str, before: str, words: list[object]) -> tuple[int, str, str]:
    """Run `condinst` in a small file system of its own, and list afterwards what is in it."""
    command = [sys.executable, "-m", "condinst_infer", *words]
    script = f"{MOUNT.format(size=size, before=before)}; status=$?; find . -mindepth 1 >&2"
    script = script.replace('exec "$@"', '{ "$@"; }').replace("find", "echo ==== >&2; find")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{script}; exit $status", folder, *map(str, command)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said, _, left = done.stderr.partition("====\n")
    return done.returncode, said, left


@pytest.fixture(scope="module")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where no file system may be mounted."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path_factory.mktemp("a"))]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("a private mount namespace is not allowed here")


@pytest.mark.usefixtures("mountable")
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk(verb: str, tmp_path: Path) -> None:
    words, size = VERBS[verb]
    before = "true" if verb != "bench" else "head -c 4096 /dev/zero > filler"
    status, said, left = on_tmpfs(tmp_path, size, before, words)
    lines = [line for line in said.splitlines() if line.startswith("condinst: ")]
    assert status in (1, 2) and FULL in lines[-1] and "Traceback" not in said
    files = [line for line in left.split() if line not in ("./filler", "./a")]
    assert not any(".condinst-" in file for file in files), files


@pytest.mark.usefixtures("mountable")
@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_disk_is_known_before_the_work(verb: str, tmp_path: Path) -> None:
    words, _ = VERBS[verb]
    before = 'mount -o remount,ro "$0"'
    status, said, left = on_tmpfs(tmp_path, "1m", before, words)
    assert (status, left) == (2, "") and FIXED in said
    assert said.startswith("condinst: ") and said.count("\n") == 1
