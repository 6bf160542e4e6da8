"""How far a build is, and that it can be stopped."""

import io
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from condinst_infer.cli import build as build_verb
from condinst_infer.trt import build
from condinst_infer.trt.progress_monitor import BuildProgress
from engines.emulator import Emulator
from tests.support.command_line import Run
from tests.support.fake_tensorrt.device import install
from tests.support.fake_tensorrt.types import state


def test_phases_within_phases_add_up_and_never_go_back() -> None:
    shares: list[float] = []
    progress = BuildProgress(shares.append)
    progress.start("all", None, 2)
    progress.start("part", "all", 4)
    for _ in range(4):
        assert progress.step("part")
    progress.step("all")
    progress.start("part", "all", 2)  # a name may come back
    progress.step("part")
    progress.start("unknown parent", "?", 3)
    progress.step("unknown parent")
    progress.step("never started")
    progress.step("all")
    assert shares == [0.125, 0.25, 0.375, 0.5, 0.5, 0.75, 0.75, 0.75, 1.0]
    progress.stop()
    assert not progress.step("all")
    assert shares[-1] == 1.0


def test_an_interrupt_stops_the_builder(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, nano_onnx: Path
) -> None:
    install(monkeypatch)
    shares: list[float] = []
    stopped = threading.Event()
    stop = BuildProgress.stop
    monkeypatch.setattr(BuildProgress, "stop", lambda self: (stop(self), stopped.set()))

    def progress(share: float) -> None:
        shares.append(share)
        if len(shares) == 2:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
            assert stopped.wait(60)

    with pytest.raises(KeyboardInterrupt):
        build.engine_from_onnx(nano_onnx, runtime="tensorrt", progress=progress)
    assert shares == [0.25, 0.5] and state.seen == []


@pytest.fixture
def slow_build(cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's stand-in, whose four steps take 0.6 seconds together."""
    install(monkeypatch)
    step = BuildProgress.step

    def slow_step(self: BuildProgress, phase: str) -> bool:
        time.sleep(0.15)
        return step(self, phase)

    monkeypatch.setattr(BuildProgress, "step", slow_step)


def test_a_log_gets_a_line_every_so_often(
    slow_build: None,
    condinst: Run,
    monkeypatch: pytest.MonkeyPatch,
    nano_onnx: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(build_verb, "LINE_S", 0.05)
    command = ("build", nano_onnx, "-o", tmp_path / "a.engine", "--runtime", "tensorrt")
    status, text, err = condinst(*command)
    assert status == 0 and "building" not in text
    lines = [re.fullmatch(r"building: (\d+) %, (\d+) s", line) for line in err.splitlines()]
    percents = [int(line[1]) for line in lines if line]
    assert len(percents) == len(lines) > 4  # steps that take long don't stop the lines
    assert percents == sorted(percents) and {0, 25, 50} <= set(percents) <= {0, 25, 50, 75, 100}


def test_a_terminal_gets_a_bar(
    slow_build: None,
    condinst: Run,
    monkeypatch: pytest.MonkeyPatch,
    nano_onnx: Path,
    tmp_path: Path,
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(build_verb, "BAR_S", 0.1)
    command = ("build", nano_onnx, "-o", tmp_path / "a.engine", "--runtime", "tensorrt")
    assert condinst(*command)[0] == 0
    shown = re.findall(r"\rbuilding: +(\d+)%\|.*?\| 00:0\d", terminal.getvalue())
    assert shown and set(map(int, shown)) <= {0, 25, 50, 75, 100} and int(shown[-1]) >= 25
    assert terminal.getvalue().endswith("\n")
