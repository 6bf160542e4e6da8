"""Signals to a training, to its process or to the whole group: nothing of it is lost."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from condinst_infer.train.resume import has_state, last_state
from condinst_infer.train.run import DataPaths
from tests.support.small_training import command_line, losses_of, small_data
from tests.support.waiting import eventually, is_empty_group

Started = subprocess.Popen[str]


@pytest.fixture
def data(tmp_path: Path) -> DataPaths:
    return small_data(tmp_path)


def start(*words: str) -> Started:
    """A training in a process group of its own."""
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def train(data: DataPaths, run: Path, **changes: object) -> list[str]:
    values = {"iterations": 5000, "save_every": 100_000, "workers": 2, **changes}
    return [sys.executable, "-m", "condinst_infer", *command_line(data, run, **values)]


def until_iteration(process: Started, run: Path, iteration: int) -> None:
    log = run / "log.jsonl"

    def reached() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return log.exists() and log.read_bytes().count(b"\n") >= iteration

    eventually(reached, within=120, pause=0.02)


def end_of(process: Started) -> tuple[int, str, list[str]]:
    """Exit status, stdout, and the lines on stderr that are no progress bar."""
    out, err = process.communicate(timeout=120)
    eventually(lambda: is_empty_group(process.pid))
    lines = [line for line in err.replace("\r", "\n").splitlines() if "it/s" not in line]
    return process.returncode, out, [line for line in lines if line and "| 0/" not in line]


@pytest.mark.parametrize(
    ("number", "group", "iteration"),
    [
        (signal.SIGTERM, True, 3),
        pytest.param(signal.SIGINT, True, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 2, marks=pytest.mark.long),
        *[
            pytest.param(number, True, iteration, marks=pytest.mark.long)
            for number in (signal.SIGTERM, signal.SIGINT)
            for iteration in (4, 9, 16)
        ],
    ],
)
def test_the_iteration_is_finished_and_saved(
    number: int, group: bool, iteration: int, data: DataPaths, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*train(data, run))
    until_iteration(process, run, iteration)
    (os.killpg if group else os.kill)(process.pid, number)
    status, _, lines = end_of(process)
    assert status == 128 + number, lines
    done = last_state(run)["iteration"]
    assert [row["iteration"] for row in losses_of(run)] == list(range(1, done + 1))
    (line,) = [line for line in lines if line.startswith("condinst: ")]
    begin = f"condinst: interrupted. The state after iteration {done} of 5000 is saved; go on with:"
    assert line.startswith(begin)
    assert not any("Traceback" in other or "Error" in other for other in lines)

    again = shlex.split(line.removeprefix(begin))
    assert again[:4] == [sys.executable, "-m", "condinst_infer", "train"]
    if iteration == 1:  # the command is one: it goes on, and refuses what the run does not allow
        refused = start(*again, "--set", "clip_norm=3")
        status, _, lines = end_of(refused)
        assert status == 2 and "clip_norm was 0.0" in lines[-1], lines


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.001, pytest.param(0.1, marks=pytest.mark.long)])
def test_two_signals_of_one_event_are_one(gap: float, data: DataPaths, tmp_path: Path) -> None:
    """`timeout` and SLURM send SIGTERM to a process and then to its whole group."""
    run = tmp_path / "run"
    process = start(*train(data, run))
    until_iteration(process, run, 2)
    process.terminate()
    time.sleep(gap)
    os.killpg(process.pid, signal.SIGTERM)
    status, _, lines = end_of(process)
    assert status in (143, -signal.SIGTERM)  # the same to a shell; it may find Python at its end
    assert has_state(run) and "go on with: " in lines[-1], lines


@pytest.mark.long
def test_timeout_ends_a_training_as_it_should(data: DataPaths, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("timeout", "12", *train(data, run))
    status, _, lines = end_of(process)
    assert status == 124 and has_state(run) and "go on with: " in lines[-1], lines


@pytest.mark.long
def test_a_second_signal_acts_at_once(data: DataPaths, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(*train(data, run, images_per_batch=800, workers=1))  # an iteration takes long
    eventually(lambda: (run / "config.json").exists() or process.poll() is not None, within=60)
    time.sleep(2)
    for _ in range(2):
        time.sleep(1.5)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=2)
    assert end_of(process)[0] == 143
    assert not has_state(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "iteration", [3, *[pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 4, 5, 7, 11, 20)]]
)
def test_a_worker_that_is_killed_costs_nothing(
    iteration: int, data: DataPaths, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(*train(data, run))
    until_iteration(process, run, iteration)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    status, _, lines = end_of(process)
    (line,) = [line for line in lines if line.startswith("condinst: ")]
    assert status == 2 and "a process that loads images" in line and "go on with: " in line, lines
    assert not any("Traceback" in other for other in lines)
    done = last_state(run)["iteration"]
    assert [row["iteration"] for row in losses_of(run)] == list(range(1, done + 1))
