"""A disk that is full, or can't be written, ends a training in one sentence."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_training import command_line, small_data

REMOUNT = "mount -o remount,ro {disk}"


def train_on_disk(tmp_path: Path, kib: int, before: str = "true") -> tuple[int, list[str], str]:
    """Train on a disk of its own size; status, lines on stderr, and the files that are left."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    data, disk = small_data(tmp_path), tmp_path / "disk"
    disk.mkdir()
    words = command_line(data, disk / "run", iterations=9, save_every=3, log_every=1)
    train = shlex.join([sys.executable, "-m", "condinst_infer", *words])
    script = (
        f"mount -t tmpfs -o size={kib}k tmpfs {disk} && {before.format(disk=disk)} && {train}; "
        f"status=$?; find {disk} -type f -printf '%P %s\\n'; exit $status"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = done.stderr.replace("\r", "\n").splitlines()
    return done.returncode, lines, done.stdout


@pytest.mark.parametrize(
    "kib",
    [
        pytest.param(4, marks=pytest.mark.long),  # config.json or TensorBoard
        pytest.param(300, marks=pytest.mark.long),  # TensorBoard's pictures, or the first state
        pytest.param(6_000, marks=pytest.mark.slow),  # the second state, or the weights
        pytest.param(9_000, marks=pytest.mark.long),
    ],
)
def test_a_full_disk_is_one_sentence(kib: int, tmp_path: Path) -> None:
    status, lines, files = train_on_disk(tmp_path, kib)
    assert status == 2, lines
    (line,) = [line for line in lines if line.startswith("condinst: ")]
    assert "No space left on device" in line
    assert not any("Traceback" in other for other in lines)
    assert ".condinst-" not in files
    if "state/" in files:
        assert "go on with: " in line
    print(kib, line, files)


@pytest.mark.long
def test_a_read_only_disk_is_one_sentence(tmp_path: Path) -> None:
    status, lines, files = train_on_disk(tmp_path, 1000, REMOUNT)
    assert (status, files) == (2, "")
    (line,) = [line for line in lines if line.startswith("condinst: ")]
    assert "Read-only file system" in line and not any("Traceback" in other for other in lines)
