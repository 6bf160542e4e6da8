"""Each clock counts what its name says, and nothing else: on a clock that only delays move."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from condinst_infer.contract.session import NodeTime
from condinst_infer.cuda import kernels
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Graph
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing import postprocess, preprocess
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.profiling.scopes import FrameScopes, _less
from condinst_infer.results import instances
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner
from engines.emulator import Emulator
from tests.support.recorded_session import Recorded, photograph
from tests.support.silent_session import Silent

Delay = Callable[[Any, float], Any]
RESIZE, ENGINE, TAIL, SLOTS, PASTE, RLE = 5, 20, 7, 3, 40, 80  # ms, of one image or of one run
IMAGE = np.full((60, 90, 3), 255, np.uint8)  # one instance


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Delay]:
    """Makes a function take so many milliseconds; all else takes none."""
    now = [0.0]
    monkeypatch.setattr(
        "condinst_infer.system.timing.time", SimpleNamespace(perf_counter=lambda: now[0] / 1000)
    )

    def delayed(function: Any, ms: float) -> Any:
        def slow(*args: Any, **options: Any) -> Any:
            now[0] += ms
            return function(*args, **options)

        return slow

    monkeypatch.setattr("condinst_infer.runtimes.runner.resize", delayed(preprocess.resize, RESIZE))
    monkeypatch.setattr(postprocess, "_used_slots", delayed(postprocess._used_slots, SLOTS))
    monkeypatch.setattr(postprocess, "paste", delayed(postprocess.paste, PASTE))
    monkeypatch.setattr(instances, "rle_from_crop", delayed(instances.rle_from_crop, RLE))
    yield delayed


class Profiling(OrtSession):
    """Says where its time went."""

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> list[NodeTime]:
        return [
            NodeTime("", "Cast", 1.0),
            NodeTime("backbone/stem/conv/Conv_nchwc", "Conv", 6.0),
            NodeTime("", "TopK", 1.0),
        ]


def measured(session: Any, delay: Delay, count: int = 1) -> dict[str, Any]:
    session.run = delay(session.run, ENGINE)
    with closing(CpuRunner(session)) as runner:
        scene = FrameScopes(runner, Pipeline(runner, max_batch=count), "white", IMAGE, count)
        turns: list[int] = []
        scene.measure(3, 1, lambda: turns.append(1))
        assert len(turns) == 4
        return scene.result(scene.nodes())


@pytest.mark.parametrize("count", [1, 2])
def test_clocks_and_stages(delay: Delay, bright_model: Path, count: int) -> None:
    row = measured(Silent(OrtSession(bright_model)), delay, count)
    assert row["instances"] == [1] * count and row["canvas"] == (96, 160)
    assert row["size"] == (60, 90) and row["batch"] == count
    clocks = {name: round(times["p50"], 6) for name, times in row["clocks_ms"].items()}
    pipeline = count * RESIZE + ENGINE
    end_to_end = pipeline + count * (SLOTS + PASTE)
    assert clocks == {
        "engine": ENGINE,
        "pipeline": pipeline,
        "end_to_end": end_to_end,
        "end_to_end_rle": end_to_end + count * RLE,
    }
    assert all(times["count"] == 3 for times in row["clocks_ms"].values())
    assert row["images_per_second"]["engine"] == pytest.approx(count * 1000 / ENGINE)
    assert row["stages_ms"] == pytest.approx(
        {
            "resize and padding": count * RESIZE,
            "network": ENGINE,
            "boxes and filters": count * SLOTS,
            "paste": count * PASTE,
            "RLE": count * RLE,
        }
    )
    assert row["convolutions_of_end_to_end"] is None


def test_parts_of_the_network_add_up_to_the_engine(delay: Delay, bright_model: Path) -> None:
    row = measured(Profiling(bright_model), delay)
    stages = row["stages_ms"]
    assert list(stages)[:3] == ["resize and padding", "input normalisation", "backbone"]
    assert stages["input normalisation"] == pytest.approx(ENGINE / 8)
    assert stages["backbone"] == pytest.approx(ENGINE * 6 / 8)
    assert stages["candidate selection"] == pytest.approx(ENGINE / 8)
    end_to_end = RESIZE + ENGINE + SLOTS + PASTE
    assert sum(stages.values()) == pytest.approx(end_to_end + RLE)
    assert row["convolutions_of_end_to_end"] == pytest.approx(
        {"ms": 15, "share": 15 / end_to_end, "outside_share": 1 - 15 / end_to_end}
    )


def test_what_follows_a_detector_graph_is_a_stage(
    delay: Delay, detector_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = delay(full_from_detector, TAIL)
    monkeypatch.setattr("condinst_infer.processing.tail.full_from_detector", after)
    row = measured(Silent(OrtSession(detector_onnx)), delay)
    (found,) = row["instances"]
    clocks = {name: round(times["p50"], 6) for name, times in row["clocks_ms"].items()}
    pipeline = RESIZE + ENGINE + TAIL
    end_to_end = pipeline + SLOTS + PASTE
    assert found > 0 and clocks == {
        "engine": ENGINE,
        "pipeline": pipeline,
        "end_to_end": end_to_end,
        "end_to_end_rle": end_to_end + found * RLE,
    }
    assert row["stages_ms"]["NMS and mask heads"] == pytest.approx(TAIL)
    assert sum(row["stages_ms"].values()) == pytest.approx(end_to_end + found * RLE)


def test_on_a_gpu_the_engine_is_the_network_alone(
    delay: Delay, cuda_emulator: Emulator, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_emulator.schedule("descending")
    before = cuda_emulator.allocations()
    session = Recorded(nano_onnx)
    session.capturable = False  # the delay is in what would be recorded
    monkeypatch.setattr(session, "enqueue", delay(session.enqueue, ENGINE))
    monkeypatch.setattr(kernels, "preprocess", delay(kernels.preprocess, RESIZE))
    monkeypatch.setattr(kernels, "paste", delay(kernels.paste, PASTE))
    with closing(CudaRunner(session, Device())) as runner:
        scene = FrameScopes(runner, Pipeline(runner), "photograph", photograph((60, 90)), 1)
        scene.measure(2, 1, lambda: None)
        assert scene.nodes() == []
        row = scene.result([])
    clocks = {name: round(times["p50"], 6) for name, times in row["clocks_ms"].items()}
    found = row["instances"][0]
    assert found > 3
    assert clocks == {
        "engine": ENGINE,
        "end_to_end": RESIZE + ENGINE + PASTE + SLOTS,
        "end_to_end_rle": RESIZE + ENGINE + PASTE + SLOTS + found * RLE,
    }
    assert row["stages_ms"] == pytest.approx(
        {
            "resize, paste and copies": RESIZE + PASTE,
            "network": ENGINE,
            "boxes and filters": SLOTS,
            "RLE": found * RLE,
        }
    )
    assert cuda_emulator.failure() == "" and cuda_emulator.allocations() == before


def test_the_network_alone_becomes_a_graph_that_is_freed(
    cuda_emulator: Emulator, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_emulator.schedule("descending")
    closed: list[Graph] = []
    close = Graph.close
    monkeypatch.setattr(Graph, "close", lambda self: (closed.append(self), close(self))[1])
    session = Recorded(nano_onnx)
    batch = [PlacedImage(photograph((128, 192)), (128, 192), (128, 192))]
    with closing(CudaRunner(session, Device())) as runner:
        expected = runner.run(batch).outputs
        enqueued = []
        for _ in range(3):
            runner.network(batch)
            enqueued.append(session.enqueued)
        assert enqueued == [3, 3, 3]  # the first time runs it and records it
        assert np.array_equal(runner.run(batch).outputs["boxes"], expected["boxes"])
    assert len(closed) == len({id(graph) for graph in closed}) == 2  # that of the whole, too
    assert cuda_emulator.failure() == ""


def test_a_stage_that_is_the_rest_of_another_is_never_below_zero() -> None:
    """Both were timed apart, and noise may be more than a short paste."""
    assert _less([5.0, 2.0, 3.0], [4.0, 2.5, 3.0]) == [1.0, 0.0, 0.0]
