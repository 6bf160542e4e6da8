"""Where the time of a run goes, as ONNX Runtime and PyTorch tell it."""

import json
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condinst_infer import checkpoint
from condinst_infer.contract.session import Profiled
from condinst_infer.errors import SessionError
from condinst_infer.profiling.layers import PARTS, layer_times
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.ort_profile import ProfiledRun, node_times, runs_from_profile
from condinst_infer.runtimes.pytorch import TorchSession


def line(name: str, start: int, stop: int, op: str = "") -> dict[str, Any]:
    content = {"ts": start, "dur": stop - start, "name": name, "args": {}}
    if not op:
        return content | {"cat": "Session"}
    args = {"op_name": op, "input_type_shape": [{"float": [1, 2]}]}
    return content | {"name": f"{name}_kernel_time", "cat": "Node", "args": args}


def run(start: int, slower: int) -> list[dict[str, Any]]:
    """A convolution of 100 us and a Loop of three steps, each with its own "nothing" node."""
    at = start + 10
    return [
        line("model_run", start, start + 2000),
        line("a", at, at + 100 + slower, "Conv"),
        # what a runtime writes first is what ended first
        line("step", at + 310, at + 320, "Add"),
        line("SequentialExecutor::Execute", at + 305, at + 325),
        line("step", at + 340, at + 350, "Add"),
        line("step", at + 370, at + 380, "Add"),
        line("loop", at + 300, at + 400, "Loop"),
        line("b", at + 405, at + 415, "Relu"),
    ]


def profile(path: Path, *runs: list[dict[str, Any]]) -> list[ProfiledRun]:
    loading = line("model_loading_uri", 0, 500)
    path.write_text(json.dumps([loading, *chain.from_iterable(runs)]))
    return runs_from_profile(path)


def test_a_loop_is_counted_once_without_what_was_written_down_in_it(tmp_path: Path) -> None:
    runs = profile(tmp_path / "a.json", run(5000, 50), run(1000, 0), run(9000, 0))
    assert [r.start for r in runs] == [1000, 5000, 9000]
    assert [len(r.nodes) for r in runs] == [6, 6, 6]
    # In each run, from the end of the node before: 110, 300 and 15 us. The cheapest node tells
    # that writing down takes 15, so the quiet run of 200 is 95 and 105 of the Loop.
    times = node_times(runs, runs, 0.200)
    assert [(t.name, t.op) for t in times] == [("a", "Conv"), ("loop", "Loop"), ("b", "Relu")]
    assert [t.ms for t in times] == pytest.approx([0.095, 0.105, 0])
    assert sum(t.ms for t in times) == pytest.approx(0.200)
    assert node_times(runs[:2], runs, 0.200)[0].ms == pytest.approx(0.120)  # the median of two


def test_a_loop_takes_at_least_what_it_takes_of_a_small_run(tmp_path: Path) -> None:
    small = profile(tmp_path / "a.json", run(0, 0))
    quick = profile(tmp_path / "b.json", run(0, 200))  # its Loop begins later and ends as before
    assert node_times(quick, small, 0.200)[1].ms == pytest.approx(0.105)
    slow = [line("model_run", 0, 900), line("loop", 0, 700, "Loop")]
    slow += [line("step", at, at + 10, "Add") for at in (100, 200, 300)]
    assert node_times(profile(tmp_path / "c.json", slow), small, 0.200)[0].ms > 0.4


def test_a_machine_that_was_busy_gives_no_time_below_zero(tmp_path: Path) -> None:
    runs = profile(tmp_path / "a.json", run(0, 0))
    assert [t.ms for t in node_times(runs, runs, 0.010)] == pytest.approx([0.095, 0, 0])
    assert node_times(runs, runs, 5.0)[1].ms == pytest.approx(0.285)  # all that was noted


@pytest.fixture(params=["ort", "torch"])
def session(request: pytest.FixtureRequest, nano_checkpoint: Path, nano_onnx: Path) -> Any:
    if request.param == "ort":
        return OrtSession(nano_onnx, threads=1)
    return TorchSession(checkpoint.load(nano_checkpoint), threads=1)


def test_a_profile_has_all_parts_of_the_network(session: Any) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 128, 160, 3), np.uint8)
    feeds = {"images": images, "image_sizes": np.array([[128, 160], [100, 160]], np.int32)}
    expected = session.run(feeds)
    nodes = session.profile(feeds, 2)
    assert issubclass(type(session), Profiled)
    times = layer_times(nodes)
    empty = {"semantic branch"}  # this is no panoptic model
    empty |= {"changes of layout"} if isinstance(session, TorchSession) else set()
    assert {part for part, ms in times.items() if ms > 0} >= {*PARTS} - empty - {"NMS"}
    assert any("ClassNMS" in node.name for node in nodes)
    by_op: Counter[str] = Counter()
    for node in nodes:
        by_op[node.op] += node.ms if node.name.startswith("backbone") else 0
    assert by_op.most_common(1)[0][0] in ("Conv", "Conv2d")
    assert sys.getprofile() is None
    if isinstance(session, TorchSession) and session.model is not None:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in session.model.modules())
    for name, value in session.run(feeds).items():
        assert np.array_equal(value, expected[name])
    with pytest.raises(SessionError, match="images"):
        session.profile({"images": images}, 1)
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.profile(feeds, 1)


def test_a_static_file_is_profiled_at_its_own_size(nano_static_onnx: Path) -> None:
    session = OrtSession(nano_static_onnx, threads=1)
    feeds = {
        "images": np.zeros((2, 128, 160, 3), np.uint8),
        "image_sizes": np.full((2, 2), 128, np.int32),
    }
    assert layer_times(session.profile(feeds, 1))["backbone"] > 0
