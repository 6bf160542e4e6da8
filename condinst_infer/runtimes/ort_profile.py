"""What each node of a network takes, from the profile that ONNX Runtime writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from condinst_infer.contract.session import NodeTime

_KERNEL = "_kernel_time"  # what follows a node's name


class Event(NamedTuple):
    """One line of a profile; times in microseconds."""

    start: int
    stop: int
    name: str
    op: str  # "" if it is no node


class Run(NamedTuple):
    """One call."""

    start: int
    nodes: list[Event]  # in the order they began, a Loop before its body


def runs_from_profile(path: Path) -> list[Run]:
    """The calls that ONNX Runtime wrote to `path`, in order."""
    events = json.loads(path.read_text(), object_hook=_event)  # whole, they take ten times as much
    events.sort(key=lambda event: (event.start, -event.stop))
    nodes = [event for event in events if event.op]
    return [
        Run(call.start, [node for node in nodes if call.start <= node.start < call.stop])
        for call in events
        if call.name == "model_run"
    ]


def _event(content: Mapping[str, Any]) -> Any:
    """An event, or what is inside one as it is."""
    if "ts" not in content:
        return content
    start, name, args = content["ts"], content["name"], content["args"]
    op = args["op_name"] if name.endswith(_KERNEL) else ""
    return Event(start, start + content["dur"], name.removesuffix(_KERNEL), op)


def node_times(runs: Sequence[Run], small: Sequence[Run], quiet_ms: float) -> list[NodeTime]:
    """The median time of each node over runs of the same input.

    A node's time goes from the end of the one before it to its own end, so that all of them are
    the whole run; those in the body of a Loop or an If are part of it. Taken off again is what
    writing an event down takes: as long as nodes of next to no work, and in a body so long that
    the small run comes out as it is when nothing is written. A body's own work is thousands of
    times a tenth of what is written of it, so it is at least that of the small run.

    Args:
        runs: at least one.
        small: runs of the smallest input, where the cost shows best.
        quiet_ms: what such a run takes when nothing is written down.
    """
    known = _spans(small)
    plain = sorted(span.ms for span in known if span.inside == 0)
    line_ms = plain[len(plain) // 10]
    looped = [span for span in known if span.inside]
    events = sum(span.inside for span in looped) or 1
    noted_ms = sum(span.ms for span in looped) - len(looped) * line_ms
    real_ms = min(noted_ms, max(0.0, quiet_ms - sum(plain) + len(plain) * line_ms))
    each_ms = (noted_ms - real_ms) / events
    times = []
    for span in _spans(runs):
        ms = span.ms - line_ms - span.inside * each_ms
        if span.inside:
            ms = max(ms, real_ms * span.inside / events)
        times.append(NodeTime(span.name, span.op, ms))
    return times


class _Span(NamedTuple):
    name: str
    op: str
    ms: float
    inside: int = 0  # events of its body


def _spans(runs: Sequence[Run]) -> list[_Span]:
    """The nodes that are in no other's body, and the median of their times."""
    return [
        same[0]._replace(ms=median(span.ms for span in same))
        for same in zip(*map(_of_run, runs), strict=True)
    ]


def _of_run(run: Run) -> list[_Span]:
    spans: list[_Span] = []
    end = run.start
    for event in run.nodes:
        if event.start < end:  # in the body of the last one
            spans[-1] = spans[-1]._replace(inside=spans[-1].inside + 1)
            continue
        spans.append(_Span(event.name, event.op, (event.stop - end) / 1000))
        end = event.stop
    return spans
