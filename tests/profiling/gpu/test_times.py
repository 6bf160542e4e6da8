"""Times of kernels: half a second of work before them, torch beside them, errors by themselves."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condinst_infer import ops
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu import frame_times, times, timing, torch_ways
from condinst_infer.profiling.gpu.kernel_costs import KernelCost
from condinst_infer.profiling.gpu.roofline import CardLimits, card_limits, roofline
from condinst_infer.profiling.gpu.scenes import mask_scene, torch_probabilities
from condinst_infer.profiling.gpu.timing import Case, Prepared
from engines.emulator import Emulator

ROOT = Path(__file__).parents[3]
COST = KernelCost(bytes=4_000_000, operations=1_000_000)
BESIDE = {
    "nms_times": "torch greedy NMS",
    "mask_head_times": "torch grouped convolution",
    "paste_times": "torch grid_sample",
    "panoptic_times": "torch whole frames",
    "mask_nms_times": "torch mask NMS",
}


@pytest.mark.parametrize("group", times.__all__)
def test_a_group_gives_ours_and_torch_beside_it(device: Device, group: str) -> None:
    rows = list(getattr(times, group)(device, small=True))
    assert rows
    for row in rows:
        assert "error" not in row and "failed" not in row and "without_graph" not in row, row
        assert row["times_ms"]["ours"]["p99"] >= row["times_ms"]["ours"]["p50"] > 0
        assert row["gb_per_s"] > 0 and row["roofline"] is None  # an emulator has no limits
        assert BESIDE.get(group, "ours") in row["times_ms"]


def test_ours_is_timed_where_torch_is_not(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (times, frame_times):
        monkeypatch.setattr(module, "torch_is_here", lambda _: False)
    for group in ("nms_times", "mask_head_times", "paste_times"):
        for row in getattr(times, group)(device, small=True):
            assert list(row["times_ms"]) == ["ours"]


def test_no_module_needs_torch_to_be_imported() -> None:
    code = "import sys; sys.modules['torch'] = None; import condinst_infer.profiling.gpu.times"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def prepared(launch: Callable[[], None] = lambda: None, **beside: Any) -> Callable[..., Prepared]:
    return lambda _: Prepared(launch, COST, beside)


def fails() -> Any:
    raise ValueError("made up")


def test_a_case_that_fails_costs_no_other_its_time(device: Device) -> None:
    cases = [Case("one", 1, lambda _: fails()), Case("two", 2, prepared())]
    one, two = timing.rows(device, True, cases)
    assert one == {"what": "one", "instances": 1, "error": "ValueError: made up"}
    assert two["instances"] == 2 and "error" not in two


def test_what_fails_beside_ours_is_left_out(device: Device) -> None:
    ways = {"not made": fails, "not run": lambda: fails, "good": lambda: lambda: 7.0}
    (row,) = timing.rows(device, True, [Case("one", 1, prepared(**ways))])
    assert set(row["times_ms"]) == {"ours", "good"} and row["times_ms"]["good"]["p50"] == 7
    assert row["failed"] == dict.fromkeys(("not made", "not run"), "ValueError: made up")


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture"])
def test_launches_are_timed_one_by_one_where_no_graph_is_recorded(
    device: Device, cuda_emulator: Emulator, call: str
) -> None:
    cuda_emulator.fault(f"{call}:0:901")
    (row,) = times.select_times(device, small=True)
    assert call in row["without_graph"] and row["times_ms"]["ours"]["p50"] > 0


def test_half_a_second_of_work_comes_before_the_first_time(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(timing, "warm_up", lambda _: done.append("warm"))
    monkeypatch.setattr(timing, "REPEATS", 1)
    list(timing.rows(device, False, [Case("one", 1, prepared(lambda: done.append("launch")))]))
    assert done[0] == "warm" and done.count("warm") == 1 and "launch" in done
    assert timing.WARM_UP_S == 0.5


def test_the_work_before_goes_on_for_its_seconds(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, launches = iter(np.arange(0, 10, 0.2)), []
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Stream, "launch", lambda *_: launches.append(1))
    timing.warm_up(device)
    assert len(launches) == 2 * timing.LAUNCHES  # at 0.2 and 0.4 s of 0.5


def test_ways_alternate_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = iter(range(100)), []
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))

    def way(name: str) -> Callable[[], float]:
        return lambda: calls.append(name) or float(len(calls))

    ways = {"ours": way("ours"), "beside": way("beside")}
    found, errors = timing.interleaved(ways, 50, budget_s=3)
    assert calls == ["ours", "beside"] * (len(calls) // 2) and not errors
    assert found["ours"]["count"] == 4 and len(calls) == 2 * (4 + timing.WARM_UP_TURNS)
    assert found["ours"]["min"] == 5  # the warm-up is not counted


def test_no_row_is_without_ours() -> None:
    with pytest.raises(ValueError, match="made up"):
        timing.interleaved({"beside": lambda: 1.0, "ours": fails}, 1)


@pytest.mark.parametrize("kind", ["spread", "crowded"])
def test_torch_nms_keeps_what_ours_keeps(kind: str) -> None:
    arrays = times.box_scene(3, 60, kind)
    boxes, scores, labels = (torch.from_numpy(array) for array in arrays)
    keep, count = ops.class_nms(
        boxes, scores, labels, iou_threshold=0.6, max_detections=180, runs=3
    )
    theirs = torch_ways.batched_nms(boxes[0], scores[0], labels[0], 0.6)
    assert theirs.tolist() == keep[0, : count[0]].tolist()
    assert len(theirs) < 60 if kind == "crowded" else len(theirs) > 150  # of 180


def test_grid_sample_pastes_the_same_masks_but_for_their_borders() -> None:
    shape, net_size, image_size = (48, 64), (180, 250), (240, 333)
    masks = torch.from_numpy(mask_scene(6, shape, image_size))
    ours = torch_probabilities(masks, 4, net_size, image_size) > 0.5
    theirs = torch_ways.pasted_by_grid_sample(masks, 4, net_size, image_size)
    assert theirs.shape == ours.shape and ours.any((1, 2)).all()
    shared, either = (ours & theirs).sum().item(), (ours | theirs).sum().item()
    assert shared / either > 0.97  # measured 0.99; half a cell to the side gives 0.9


class Card:
    """A device as far as its limits go: attributes by their number."""

    def __init__(self, capability: tuple[int, int], **attributes: int) -> None:
        self.compute_capability, self._handle, self._driver = capability, 0, self
        names = {"clock": 13, "processors": 16, "memory_clock": 36, "bus": 37}
        self._values = {names[name]: value for name, value in attributes.items()}

    def CUdevice_attribute(self, number: int) -> int:
        return number

    def call(self, name: str, attribute: int, handle: int) -> int:
        assert name == "cuDeviceGetAttribute"
        return self._values[attribute]


H200: Any = Card((9, 0), clock=1_980_000, processors=132, memory_clock=3_201_000, bus=6144)


def test_limits_of_a_card_are_those_of_its_data_sheet() -> None:
    bandwidth, peak = card_limits(H200)
    assert bandwidth == pytest.approx(4.9e12, rel=0.02)  # NVIDIA says 4.8 TB/s
    assert peak == pytest.approx(67e12, rel=0.01)


def test_limits_that_the_driver_does_not_tell_are_unknown() -> None:
    silent: Any = Card((9, 0), clock=0, processors=132, memory_clock=3_201_000, bus=0)
    assert card_limits(silent) == CardLimits(None, None)
    newer: Any = Card((99, 0), clock=1_000_000, processors=1, memory_clock=1_000_000, bus=64)
    assert card_limits(newer) == CardLimits(16e9, None)
    assert roofline(COST, 1.0, card_limits(newer)) is None


def test_the_roofline_is_set_by_the_longer_of_both_times() -> None:
    limits = CardLimits(bytes_per_s=1e12, operations_per_s=1e12)
    found = roofline(COST, 0.008, limits)
    assert found is not None and found["bound"] == "memory"
    assert found["least_us"] == pytest.approx(4) and found["share"] == pytest.approx(0.5)
    found = roofline(COST._replace(operations=6_000_000), 0.008, limits)
    assert found is not None and found["bound"] == "compute"
    assert found["share"] == pytest.approx(0.75)
