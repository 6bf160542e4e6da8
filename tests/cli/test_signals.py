"""Ctrl-C and SIGTERM at a running command: what is done is in order, and nothing else is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from condinst_infer.system.outputs import is_temporary
from tests.support.waiting import eventually, is_empty_group

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def start(words: Sequence[object], folder: Path) -> "subprocess.Popen[str]":
    """A command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path)]


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_are_done_are_in_the_results(
    workers: int, number: int, status: int, to_group: bool, tmp_path: Path, demo_folder: Path
) -> None:
    images, found = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    for k in range(200):
        shutil.copy(demo_folder / "nuclei.jpg", images / f"{k:03}.jpg")
    found.mkdir()
    (found / "detections.json").write_text("old")
    words = ["-m", "condinst_infer", "predict", "nuclei", "images", "-o", "found"]
    process = start([*words, "--workers", workers, "--threads", 1], tmp_path)
    eventually(lambda: len(list(found.glob("*.jpg"))) > 2, within=120)
    os.killpg(process.pid, number) if to_group else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    rows = json.loads((found / "detections.json").read_text())
    done = {row["file_name"] for row in rows}
    assert err == f"condinst: interrupted; {len(done)} of 200 images are done.\n"
    overlays = {path.name for path in found.glob("*.jpg")}
    assert done <= overlays and len(overlays - done) <= 2 * 2 * 8
    assert not temporaries(tmp_path) and is_empty_group(process.pid)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize(
    "words",
    [
        ["bench", "nuclei", "-o", "old.json"],
        ["export", "model.safetensors", "-o", "old.onnx"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_is_not_whole_is_not_there(
    words: list[str], number: int, status: int, tmp_path: Path, demo_folder: Path
) -> None:
    shutil.copy(demo_folder / "nuclei.safetensors", tmp_path / "model.safetensors")
    old = tmp_path / words[-1]
    old.write_text("old")
    process = start(["-m", "condinst_infer", *words], tmp_path)
    eventually(lambda: temporaries(tmp_path), within=60)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    said = f"condinst: interrupted; {old.name} was not written.\n"
    assert process.returncode == status and err.endswith(said)
    assert old.read_text() == "old" and not temporaries(tmp_path)
    assert is_empty_group(process.pid)


STUBBORN = """
import hashlib, subprocess, sys
from pathlib import Path
from condinst_infer.cli import main, presets
from condinst_infer.system.outputs import atomic_file

def work(options):
    with atomic_file(Path("old")) as part:
        subprocess.Popen(["sleep", "600"])
        part.write_text("half")
        Path("ready").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)  # minutes, deaf to signals

presets.VERB = presets.VERB._replace(run=work)
sys.argv = ["condinst", "presets"]
sys.exit(main.main())
"""


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_second_signal_acts_at_once(number: int, status: int, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    process = start(["-c", STUBBORN], tmp_path)
    eventually((tmp_path / "ready").exists, within=60)
    time.sleep(0.5)  # the next line of it has begun, which no signal ends
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == status
    assert (tmp_path / "old").read_text() == "old" and not temporaries(tmp_path)
    eventually(lambda: is_empty_group(process.pid))


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["predict", "nuclei", "images", "-o", "out"], "out/detections.json"),
        (["bench", "nuclei", "--size", "64x96", "--repeats", 2, "-o", "out.json"], "out.json"),
        (["export", "model.safetensors", "-o", "out.onnx"], "out.onnx"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_after_a_kill_the_same_command_leaves_no_trace_of_it(
    words: list[object], result: str, tmp_path: Path, demo_folder: Path
) -> None:
    shutil.copy(demo_folder / "nuclei.safetensors", tmp_path / "model.safetensors")
    images = tmp_path / "images"
    images.mkdir()
    for k in range(12):
        shutil.copy(demo_folder / "nuclei.jpg", images / f"{k}.jpg")
    command = ["-m", "condinst_infer", *words]
    process = start(command, tmp_path)
    eventually(lambda: temporaries(tmp_path), within=120, pause=0.0002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / result).exists()
    process = start(command, tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err
    assert (tmp_path / result).stat().st_size > 1000 and not temporaries(tmp_path)
