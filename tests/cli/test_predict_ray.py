"""`condinst predict --ray` on a real Ray of two cores: nothing lost, nothing twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyarrow import parquet

from tests.support.command_line import Run, assert_refused
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the home folder
    "RAY_worker_niceness": "0",  # by default 15: they would starve beside other tests
}
CLUSTER = """
import sys, ray
small = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
ray.init("local", _temp_dir=sys.argv[1], **small)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
# sitecustomize.py of the workers: who opens a FIFO waits for a writer, and until that one is gone
WAITING = """
import os, stat
system_open = os.open
def waiting_open(path, *arguments, **names):
    if str(path).endswith("5.png") and stat.S_ISFIFO(os.stat(path).st_mode):
        number = system_open(path, os.O_RDONLY)
        os.read(number, 1)
        os.close(number)
    return system_open(path, *arguments, **names)
os.open = waiting_open
"""
Start = Callable[..., subprocess.Popen[str]]  # words of the command
DEADLINE_S = 120  # of what takes seconds on an idle machine
wait_for = partial(eventually, within=DEADLINE_S, pause=0.05)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray of this file's own, with room for two workers."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "sitecustomize.py").write_text(WAITING)
        ray = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder],
            env=ENVIRONMENT | {"PYTHONPATH": f"{folder}:{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with ray:
            assert ray.stdout is not None
            yield ray.stdout.readline().strip()
            ray.communicate("")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Names 12 images in two folders with the same names; the sixth is a pipe nobody writes to."""
    names = [f"{folder}/{number}.png" for folder in ("one", "two") for number in range(6)]
    for number, name in enumerate(names):
        image = np.zeros((60, 90, 3), np.uint8)
        image[20:50, 10 : 20 + 5 * number] = 255
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), image)
    pipe = tmp_path / "one/5.png"
    pipe.rename(tmp_path / "image-of-the-pipe.png")
    os.mkfifo(pipe)
    path = tmp_path / "images.txt"
    path.write_text("\n".join(names))
    return path


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts `condinst predict`; what still runs after the test is killed."""
    running = []

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "condinst_infer", "predict", *map(str, words)]
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def shards(out: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of each finished shard."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("shard-*.jsonl")}


def records(out: Path) -> list[dict[str, Any]]:
    """All lines of all shards, in order."""
    return [
        json.loads(line)
        for _, text in sorted(shards(out).items())
        for line in text[1].split(b"\n")
        if line
    ]


def writer(pipe: Path) -> int | None:
    """A descriptor that keeps the reader of `pipe` waiting; None where nobody reads it yet."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def reader_of(pipe: Path) -> int:
    """The process of a Ray worker that has `pipe` open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = link.readlink() == pipe
        except OSError:
            continue
        process = link.parent.parent
        if found and process.name != str(os.getpid()):
            assert b"ray::" in (process / "cmdline").read_bytes()
            return int(process.name)
    return 0


def test_a_killed_worker_loses_nothing_and_repeats_nothing(
    cluster: str,
    started: Start,
    condinst: Run,
    bright_model: Path,
    manifest: Path,
    tmp_path: Path,
) -> None:
    out, pipe = tmp_path / "out", tmp_path / "one/5.png"
    words = [bright_model, manifest, "-o", out, "--shard-size", 2, "--workers", 1, "--json"]
    run = started(*words, "--ray", cluster)
    held = wait_for(lambda: writer(pipe))
    wait_for(lambda: len(shards(out)) >= 2)  # by the other worker
    worker = wait_for(lambda: reader_of(pipe))
    assert "shard-00002.jsonl" not in shards(out)
    shutil.copy(tmp_path / "image-of-the-pipe.png", tmp_path / "copy.png")
    (tmp_path / "copy.png").replace(pipe)
    os.kill(worker, signal.SIGKILL)
    os.close(held)
    status, text, err = finished(run)
    assert status == 0, err
    report = json.loads(text)
    counts = {"images": 12, "instances": 12, "failed": [], "before": 0, "shards": 6}
    assert report.items() >= counts.items()

    plain = tmp_path / "plain"
    _, text, _ = condinst("predict", bright_model, manifest, "-o", plain, "--json")
    rows = json.loads((plain / "detections.json").read_text())
    expected = [
        {
            "file": image["file"],
            "image_id": image["image_id"],
            "size": image["size"],
            "detections": [
                {k: v for k, v in row.items() if k != "file_name"}
                for row in rows
                if row["image_id"] == image["image_id"]
            ],
        }
        for image in json.loads(text)["images"]
    ]
    assert records(out) == expected
    assert sorted(p.name for p in out.iterdir()) == ["run.json", *sorted(shards(out))]

    before = shards(out)
    status, text, err = condinst("predict", *words, "--ray", "local:1")  # where no Ray is
    assert (status, err, shards(out)) == (0, "", before)
    assert json.loads(text).items() >= {"images": 0, "before": 12, "shards": 6}.items()
    for option, name in (("--score-threshold", "score_threshold"), ("--shards", "shards")):
        value = 0.5 if option == "--score-threshold" else "parquet"
        ran = condinst("predict", *words, option, value, "--ray", "local:1")
        assert_refused(ran, f"the shards in {out} were made with {name} ", f", not {value!r}; give")
    shutil.copy(bright_model, tmp_path / "other.onnx")
    with (tmp_path / "other.onnx").open("ab") as file:
        file.write(b"\0")
    ran = condinst("predict", tmp_path / "other.onnx", *words[1:], "--ray", "local:1")
    assert_refused(ran, "were made with model_sha256 ")
    assert shards(out) == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_is_left(
    cluster: str, started: Start, bright_model: Path, manifest: Path, tmp_path: Path
) -> None:
    out, pipe = tmp_path / "out", tmp_path / "one/5.png"
    words = [bright_model, manifest, "-o", out, "--shard-size", 3, "--workers", 1, "--ray", cluster]
    run = started(*words)
    held = wait_for(lambda: writer(pipe))
    wait_for(lambda: len(shards(out)) >= 1)
    run.send_signal(signal.SIGTERM)
    status, text, err = finished(run)
    os.close(held)
    assert status == 143 and "Traceback" not in err
    assert "condinst: interrupted; finished shards stay" in err
    before = shards(out)
    assert before and "shard-00001.jsonl" not in before
    assert f" -> {len(before)} shards in " in text

    (tmp_path / "image-of-the-pipe.png").replace(pipe)
    (tmp_path / "two/broken.png").write_text("I am a text")
    manifest.write_text(manifest.read_text() + "\ntwo/broken.png\none/0.png")
    status, text, err = finished(started(*words, "--json"))
    report = json.loads(text)
    assert status == 1 and "two/broken.png is not an image" in err
    assert [failure["file"] for failure in report["failed"]] == [str(tmp_path / "two/broken.png")]
    assert report["images"] == 12 - report["before"] == 12 - 3 * len(before)
    assert shards(out).items() >= before.items() and report["shards"] == 5
    files = [record["file"] for record in records(out)]
    names = manifest.read_text().split()[:13]
    assert files == [str(tmp_path / name) for name in names]
    assert records(out)[-1] == report["failed"][0]


@pytest.mark.slow
def test_a_ray_of_its_own_and_parquet(bright_model: Path, photos: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "condinst_infer", "predict", bright_model, photos),
                *("-o", tmp_path / "out", "--ray", "local", "--shards", "parquet", "--json"),
            ],
            env=ENVIRONMENT | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout).items() >= {"images": 3, "instances": 3, "shards": 1}.items()
    rows = parquet.read_table(tmp_path / "out/shard-00000.parquet").to_pylist()
    files = [str(photos / name) for name in ("12.jpg", "a.png", "b/a.png")]
    assert [row["file"] for row in rows] == files
    assert [len(row["detections"]) for row in rows] == [1, 1, 1]


@pytest.mark.slow
def test_what_is_wrong_in_a_worker_is_one_sentence(
    cluster: str, started: Start, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    words = [bright_model, photos, "-o", tmp_path / "out", "--ray", cluster]
    status, text, err = finished(started(*words, "--score-threshold", 3))
    assert (status, text) == (2, "")
    assert err.splitlines()[-1] == "condinst: score_threshold is 3.0; it must be from 0 to 1."
    status, text, err = finished(started(*words, "--workers", 3))
    assert (status, text) == (2, "") and "no node of the Ray cluster has 3 cores" in err
    assert shards(tmp_path / "out") == {}
