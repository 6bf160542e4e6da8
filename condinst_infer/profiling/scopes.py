"""What is timed of one frame: the clocks, the stages, and the parts of the network."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from condinst_infer.contract.session import NodeTime, Profiled
from condinst_infer.cuda.runner import DeviceRunner
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import Placed, placement
from condinst_infer.processing.postprocess import Found, instances_from_outputs
from condinst_infer.profiling.layers import convolution_share, part_times
from condinst_infer.results.crop import CroppedMask
from condinst_infer.runtimes.runner import HostRunner
from condinst_infer.system.timing import interleaved, summary

Runner = HostRunner | DeviceRunner
Functions = dict[str, Callable[[], object]]
CLOCKS = {
    "engine": "the network alone: input arrays that are ready, to its outputs",
    "pipeline": "a frame in memory to masks at network resolution in memory",
    "end_to_end": "a frame in memory to boxes, scores and native-size masks in memory",
    "end_to_end_rle": "the same, and the masks' COCO run-length encodings",
    "panoptic": "a frame in memory to its panoptic segmentation in memory, of a panoptic model",
}
_PROFILED = 3  # runs; in ONNX Runtime each writes down thousands of events


class Scene:
    """One frame, `count` times in a call, and what it takes."""

    def __init__(
        self, runner: Runner, pipeline: Pipeline, name: str, frame: np.ndarray, count: int
    ) -> None:
        self._runner, self._pipeline, self._name = runner, pipeline, name
        metadata = runner.metadata
        size = (frame.shape[0], frame.shape[1])
        placed = Placed(frame, *placement(size, metadata.config.input, metadata.size))
        self.frames = [frame] * count
        self._batch = [placed] * count
        self.input = placed.canvas, count

    def measure(self, repeats: int, warmup: int, turned: Callable[[], object]) -> None:
        """Fill `times`, milliseconds of each function below."""
        self._results = self._pipeline(self.frames)
        functions = self._around() | self._inside()
        self._times = interleaved(functions, repeats=repeats, warmup=warmup, turned=turned)

    def _around(self) -> Functions:
        """What has the same meaning everywhere."""
        pipeline, frames, results = self._pipeline, self.frames, self._results
        found = self._runner.run(self._batch)
        no_crops = [CroppedMask(0, 0, np.zeros((0, 0), bool))] * found.outputs["scores"].shape[1]
        panoptic: Functions = {}
        if pipeline.config.is_panoptic:
            panoptic["panoptic"] = lambda: pipeline.panoptic(frames)
        return panoptic | {
            "end_to_end": lambda: pipeline(frames),
            "end_to_end_rle": lambda: [result.rle() for result in pipeline(frames)],
            "boxes": lambda: self._instances(found, no_crops),
            "rle": lambda: [result.rle() for result in results],
        }

    def _inside(self) -> Functions:
        """What lies before the boxes."""
        runner, batch = self._runner, self._batch
        if isinstance(runner, DeviceRunner):  # `network` reads what `run` left
            return {"run": lambda: runner.run(batch), "engine": lambda: runner.network(batch)}
        feeds, found = runner.feeds(batch), runner.run(batch)
        return {
            "engine": lambda: runner.session.run(feeds),
            "pipeline": lambda: runner.run(batch),
            "resize": lambda: runner.feeds(batch),
            "boxes_and_paste": lambda: self._instances(found, None),
        }

    def _instances(self, found: Found, crops: Sequence[CroppedMask] | None) -> None:
        """What a call of the pipeline does last; with `crops`, no masks are pasted."""
        for slot, placed in enumerate(self._batch):
            instances_from_outputs(
                found.outputs,
                slot,
                net_size=placed.net_size,
                image=placed.image,
                config=self._runner.metadata.config,
                crops=crops,
            )

    def nodes(self) -> list[NodeTime]:
        """Where the time of the network goes, if that can be known."""
        runner = self._runner
        if isinstance(runner, HostRunner) and isinstance(runner.session, Profiled):
            return runner.session.profile(runner.feeds(self._batch), _PROFILED)
        return []

    def result(self, nodes: Sequence[NodeTime]) -> dict[str, Any]:
        """One row of the benchmark."""
        image, count = self.frames[0], len(self.frames)
        clocks = {name: summary(self._times[name]) for name in CLOCKS if name in self._times}
        whole_ms = clocks["end_to_end"]["p50"]
        convolutions = None
        if nodes:
            ms = clocks["engine"]["p50"] * convolution_share(nodes)
            convolutions = {"ms": ms, "share": ms / whole_ms, "outside_share": 1 - ms / whole_ms}
        return {
            "image": self._name,
            "size": image.shape[:2],
            "batch": count,
            "canvas": self.input[0],
            "instances": [len(result) for result in self._results],
            "clocks_ms": clocks,
            "images_per_second": {name: 1000 * count / s["mean"] for name, s in clocks.items()},
            "stages_ms": self._stages(nodes),
            "convolutions_of_end_to_end": convolutions,
        }

    def _stages(self, nodes: Sequence[NodeTime]) -> dict[str, float]:
        """Medians; the network's parts are shares of the engine's."""
        times = self._times
        engine = _p50(times["engine"])
        after = {"boxes and filters": _p50(times["boxes"])}
        if "run" in times:
            before = {"resize, paste and copies": _p50(_less(times["run"], times["engine"]))}
        else:
            before = {"resize and padding": _p50(times["resize"])}
            after["paste"] = _p50(_less(times["boxes_and_paste"], times["boxes"]))
        network = part_times(nodes)
        scale = engine / sum(network.values()) if network else 0
        network = {part: ms * scale for part, ms in network.items()} or {"network": engine}
        return before | network | after | {"RLE": _p50(times["rle"])}


def _less(times_ms: Sequence[float], part_ms: Sequence[float]) -> list[float]:
    """What is left of each turn."""
    return [whole - part for whole, part in zip(times_ms, part_ms, strict=True)]


def _p50(times_ms: Sequence[float]) -> float:
    return summary(times_ms)["p50"]
