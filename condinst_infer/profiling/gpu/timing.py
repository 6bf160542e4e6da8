"""Times of launches on a GPU with what stands beside them in the same run; torch is optional."""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Graph, Stream
from condinst_infer.errors import SessionError
from condinst_infer.profiling.gpu.checks import sentence
from condinst_infer.profiling.gpu.kernel_costs import PAPER_HEAD, KernelCost
from condinst_infer.profiling.gpu.roofline import card_limits, roofline
from condinst_infer.system.timing import summary

LAUNCHES = 20  # of a kernel in one graph, so that starting it costs nothing
REPEATS = 100
WARM_UP_TURNS = 2
WARM_UP_S = 0.5  # an idle card has a fifth of its clock, and needs a while to raise it
BUDGET_S = 2.0  # for the repeats of one case: what is slow is repeated less often
OURS = "ours"

Measure = Callable[[], float]  # milliseconds of one call
Row = dict[str, Any]


class Case(NamedTuple):
    """One launch to time.

    Args:
        prepare: makes, on a stream, what `launch` and `beside` need.
    """

    what: str
    instances: int | None
    prepare: "Callable[[Stream], Prepared]"


class Prepared(NamedTuple):
    """Work of one case with its inputs in device memory."""

    launch: Callable[[], None]
    cost: KernelCost
    beside: Mapping[str, Callable[[], Measure]] = {}  # each call makes a way that may fail


def rows(device: Device, small: bool, cases: Iterable[Case]) -> Iterator[Row]:
    """Time each case by itself; one that fails gives a row with its error.

    Args:
        small: without the work that raises the clocks, and with one repeat.
    """
    if not small:
        warm_up(device)
    repeats, launches = (1, 2) if small else (REPEATS, LAUNCHES)
    for case in cases:
        try:
            yield _measure(device, case, repeats, launches)
        except Exception as error:  # the next case may work
            yield {"what": case.what, "instances": case.instances, "error": sentence(error)}


def warm_up(device: Device, seconds: float = WARM_UP_S) -> None:
    """Keep the GPU busy with mask heads, so that its clocks rise before the first time."""
    k, h, w = 100, 64, 88
    stream = Stream(device)
    try:
        half = np.dtype(np.float16)
        inputs = [
            stream.array(np.full(shape, value, kind))
            for shape, value, kind in (
                ((1, 8, h, w), 0, half), ((1, k, 169), 0, half), ((1, k, 2), 0, np.float32),
                ((1, k), 64, np.float32), ((1,), k, np.int32),
            )
        ]  # fmt: skip
        masks = stream.empty((1, k, 2 * h, 2 * w), half)
        launch = kernels.dynamic_mask_head(1, k, h, w, stride=8, factor=2, **PAPER_HEAD, dtype=half)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(LAUNCHES):
                stream.launch(launch, inputs, [masks])
            stream.synchronize()
    finally:
        close_quietly(stream)


def _measure(device: Device, case: Case, repeats: int, launches: int) -> Row:
    """The row of one case, measured on a stream of its own."""
    stream = Stream(device)
    work = None
    try:
        launch, cost, beside = case.prepare(stream)
        work = LaunchedWork(stream, launch, launches)
        ways: dict[str, Measure] = {OURS: work.milliseconds}
        failed = {}
        for name, make in beside.items():
            try:
                ways[name] = make()
            except Exception as error:  # ours is timed without it
                failed[name] = sentence(error)
        times, errors = interleaved(ways, repeats)
        row = result(case.what, times, cost, device) | {"instances": case.instances}
        if failed | errors:
            row["failed"] = failed | errors
        if work.refusal:
            row["without_graph"] = work.refusal
        return row
    finally:
        if work is not None:
            work.close()
        close_quietly(stream)


class LaunchedWork:
    """Several launches of the same work, as one graph where the driver records it."""

    def __init__(self, stream: Stream, launch: Callable[[], None], launches: int) -> None:
        self._stream, self._launch, self._launches = stream, launch, launches
        self._graph: Graph | None = None
        self.refusal = ""  # why there is no graph
        launch()  # loads the kernel, which a recording must not
        stream.synchronize()
        try:
            self._graph = stream.graph(self._all)
        except SessionError as error:
            self.refusal = sentence(error)

    def milliseconds(self) -> float:
        """Time of one launch on the device: the mean of all, between two events."""
        work = self._all if self._graph is None else self._graph.launch
        return self._stream.milliseconds(work) / self._launches

    def close(self) -> None:
        """Free the graph."""
        if self._graph is not None:
            with suppress(SessionError):
                self._graph.close()

    def _all(self) -> None:
        for _ in range(self._launches):
            self._launch()


def interleaved(
    ways: Mapping[str, Measure],
    repeats: int,
    budget_s: float = BUDGET_S,
    warm_up_turns: int = WARM_UP_TURNS,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Summaries of the milliseconds of each way, and the error of each that failed.

    The ways alternate. An error of `OURS` is raised; another way that fails is left out from then
    on. There are fewer repeats where `budget_s` seconds are over, at least one.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, str] = {}
    start = time.monotonic()
    for turn in range(warm_up_turns + repeats):
        if turn > warm_up_turns and time.monotonic() - start > budget_s:
            break
        for name, measure in ways.items():
            if name in errors:
                continue
            try:
                elapsed = measure()
            except Exception as error:
                if name == OURS:
                    raise
                errors[name] = sentence(error)
                continue
            if turn >= warm_up_turns:
                times[name].append(elapsed)
    return {name: summary(found) for name, found in times.items() if found}, errors


def result(
    what: str, times: Mapping[str, Mapping[str, float]], cost: KernelCost, device: Device
) -> Row:
    """One row: times of ours and of the ways beside, what had to be done, and how near a limit."""
    seconds = times[OURS]["p50"] / 1000
    return {
        "what": what,
        "times_ms": dict(times),
        "bytes": cost.bytes,
        "operations": cost.operations,
        "gb_per_s": cost.bytes / seconds / 1e9,
        "gflop_per_s": cost.operations / seconds / 1e9,
        "roofline": roofline(cost, times[OURS]["p50"], card_limits(device)),
    }


def is_emulated(device: Device) -> bool:
    """True for the CPU in the place of a GPU, engines.emulator."""
    return device.name.startswith("no GPU")


def torch_is_here(device: Device) -> bool:
    """True if torch can work on what lies in the memory of `device`."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return is_emulated(device) or torch.cuda.is_available()


def close_quietly(stream: Stream) -> None:
    """Close `stream`; where the GPU is lost, what was measured or raised before counts."""
    with suppress(SessionError):
        stream.close()
