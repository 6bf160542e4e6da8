"""Progress of a TensorRT build, and a way to stop it."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


class BuildProgress:
    """TensorRT's progress reports: phases within phases, each of several steps.

    Args:
        report: called with the share that is done, 0 to 1.
    """

    def __init__(self, report: Callable[[float], object]) -> None:
        self.stopped = False
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[float, float]] = {}  # share done, share of one step
        self._most = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            done, width = self._phases.get(parent or "", (0.0, 1.0))
            self._phases[phase] = (done, width / steps)

    def step(self, phase: str) -> bool:
        """One step of `phase` is done; False asks TensorRT to stop."""
        with self._lock:
            done, width = self._phases.get(phase, (0.0, 0.0))
            self._phases[phase] = (done + width, width)
            self._most = max(self._most, min(1.0, done + width))  # phases come back under old names
        self._report(self._most)
        return not self.stopped

    def stop(self) -> None:
        """Stop the build at its next step."""
        self.stopped = True


def monitor(trt: ModuleType, progress: BuildProgress) -> Any:
    """The IProgressMonitor that tells `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
