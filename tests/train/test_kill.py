"""A training that is killed at random moments ends with the weights of one that never was."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.train.resume import has_state
from condinst_infer.train.run import DataPaths, train
from tests.support.small_training import losses_of, small_config, small_data, small_settings

KILLS = 20
SETTINGS: dict[str, Any] = {"iterations": 24, "save_every": 3, "eval_every": 8, "workers": 1}
FORKS = multiprocessing.get_context("forkserver")  # imports torch once, for all processes
FORKS.set_forkserver_preload(["condinst_infer.train.run", "tests.support.small_training"])


def train_on(data: DataPaths, run: Path) -> None:
    """Train, or go on where there is a state."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of the loader, as in a plain process
    settings = small_settings(**SETTINGS)
    train(small_config(), settings, data, run, val=data, resume=has_state(run))


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path: Path) -> None:
    data, whole, run = small_data(tmp_path), tmp_path / "whole", tmp_path / "run"
    for folder in (tmp_path / "first", whole):  # the first waits for torch
        started = time.monotonic()
        reference = FORKS.Process(target=train_on, args=(data, folder))
        reference.start()
        reference.join()
        assert reference.exitcode == 0
    seconds = time.monotonic() - started

    moments, kills, runs = random.Random(7), 0, 0
    while kills < KILLS or runs == 0:
        process = FORKS.Process(target=train_on, args=(data, run))
        process.start()
        process.join(moments.uniform(0, 0.8 * seconds) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            with suppress(ProcessLookupError):  # its loader would see only after seconds
                os.killpg(process.pid or 0, signal.SIGKILL)
            kills += 1
            continue
        assert process.exitcode == 0
        assert_same(run, whole)
        shutil.rmtree(run)  # the next kills are for another run
        runs += 1
    print(f"{kills} kills, {runs} runs, a whole one takes {seconds:.1f} s")


def assert_same(run: Path, whole: Path) -> None:
    for name in ("model.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert losses_of(run) == losses_of(whole)
    names = [sorted(p.name for p in r.rglob("*") if "tfevents" not in p.name) for r in (run, whole)]
    assert names[0] == names[1]  # no temporary file is left
