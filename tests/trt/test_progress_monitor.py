"""How far a build is, and that it can be stopped."""

import signal
import threading
from pathlib import Path

import pytest

from condinst_infer.trt import build
from condinst_infer.trt.progress_monitor import BuildProgress
from engines.emulator import Emulator
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
