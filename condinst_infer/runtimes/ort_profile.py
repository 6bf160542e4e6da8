"""Time of each node of a network, from the profile that ONNX Runtime writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from condinst_infer.contract.session import NodeTime

_KERNEL = "_kernel_time"  # what follows a node's name


class ProfileEvent(NamedTuple):
    """One line of a profile; times in microseconds."""

    start: int
    stop: int
    name: str
    op: str  # "" if it is no node


class ProfiledRun(NamedTuple):
    """One call."""

    start: int
    nodes: list[ProfileEvent]  # in the order they began, a Loop before its body


def runs_from_profile(path: Path) -> list[ProfiledRun]:
    """The calls that ONNX Runtime wrote to `path`, in order."""
    events = json.loads(path.read_text(), object_hook=_event)  # whole, they take ten times as much
    events.sort(key=lambda event: (event.start, -event.stop))
    nodes = [event for event in events if event.op]
    return [
        ProfiledRun(call.start, [node for node in nodes if call.start <= node.start < call.stop])
        for call in events
        if call.name == "model_run"
    ]


def _event(content: Mapping[str, Any]) -> Any:
    """An event, or what is inside one as it is."""
    if "ts" not in content:
        return content
    start, name, args = content["ts"], content["name"], content["args"]
    op = args["op_name"] if name.endswith(_KERNEL) else ""
    return ProfileEvent(start, start + content["dur"], name.removesuffix(_KERNEL), op)


def node_times(
    runs: Sequence[ProfiledRun], small_runs: Sequence[ProfiledRun], unprofiled_ms: float
) -> list[NodeTime]:
    """Median time of each node, corrected for the cost of profiling.

    ONNX Runtime writes one event per node, and one per node and iteration inside a Loop or If. A
    node's time goes from the end of the one before it to its own end, so that all of them are the
    whole run. Subtracted: per event, the 10th percentile of plain nodes in the small run, which
    do almost no work; per event in a body, what makes the small run add up to its unprofiled time.

    Args:
        runs: at least one, of the same input.
        small_runs: runs of the smallest input, where the cost shows best.
        unprofiled_ms: time of a small run when nothing is written.
    """
    overhead = _profiling_overhead(_spans(small_runs), unprofiled_ms)
    return [NodeTime(s.name, s.op, overhead.without_overhead_ms(s)) for s in _spans(runs)]


class _Span(NamedTuple):
    name: str
    op: str
    ms: float
    inside: int = 0  # events of its body


class _Overhead(NamedTuple):
    """Time that profiling adds, and the work inside of bodies."""

    event_ms: float  # per node
    body_event_ms: float  # per event in a body
    body_work_ms: float  # real work per event in a body, in the small run

    def without_overhead_ms(self, span: _Span) -> float:
        """The time of a node without profiling; a body works at least as in the small run."""
        ms = span.ms - self.event_ms - span.inside * self.body_event_ms
        return max(ms, span.inside * self.body_work_ms) if span.inside else ms


def _profiling_overhead(spans: Sequence[_Span], unprofiled_ms: float) -> _Overhead:
    """The overhead in the nodes of a small run that takes `unprofiled_ms` without profiling."""
    plain_ms = sorted(span.ms for span in spans if not span.inside)
    loops = [span for span in spans if span.inside]
    event_ms = plain_ms[len(plain_ms) // 10]
    # the time of all bodies as profiled, and as it is: the rest of the unprofiled run
    profiled_ms = sum(span.ms for span in loops) - len(loops) * event_ms
    rest_ms = unprofiled_ms - sum(plain_ms) + len(plain_ms) * event_ms
    work_ms = min(profiled_ms, max(0.0, rest_ms))
    events = sum(span.inside for span in loops) or 1
    return _Overhead(event_ms, (profiled_ms - work_ms) / events, work_ms / events)


def _spans(runs: Sequence[ProfiledRun]) -> list[_Span]:
    """The nodes outside of bodies, with the median of their times."""
    return [
        same[0]._replace(ms=median(span.ms for span in same))
        for same in zip(*map(_of_run, runs), strict=True)
    ]


def _of_run(run: ProfiledRun) -> list[_Span]:
    spans: list[_Span] = []
    end = run.start
    for event in run.nodes:
        if event.start < end:  # in the body of the last one
            spans[-1] = spans[-1]._replace(inside=spans[-1].inside + 1)
            continue
        spans.append(_Span(event.name, event.op, (event.stop - end) / 1000))
        end = event.stop
    return spans
