"""Scopes of the clocks for one frame, its stages, and the parts of the network."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from condinst_infer.contract.session import NodeTime, Profiled
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import place_image
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.profiling.layers import convolution_share, layer_times
from condinst_infer.results.crop import CroppedMask
from condinst_infer.runtimes.runner import CpuRunner
from condinst_infer.system.timing import summary, time_interleaved

Runner = CpuRunner | CudaRunner
Functions = dict[str, Callable[[], object]]
CLOCKS = {
    "engine": "the network alone: input arrays that are ready, to its outputs",
    "pipeline": "a frame in memory to masks at network resolution in memory",
    "end_to_end": "a frame in memory to boxes, scores and native-size masks in memory",
    "end_to_end_rle": "the same, and the masks' COCO run-length encodings",
    "panoptic": "a frame in memory to its panoptic segmentation in memory, of a panoptic model",
}
_PROFILED = 3  # runs; in ONNX Runtime each writes down thousands of events


class FrameScopes:
    """One frame, `count` times in a call, and what it takes."""

    def __init__(
        self, runner: Runner, pipeline: Pipeline, name: str, frame: np.ndarray, count: int
    ) -> None:
        self._runner, self._pipeline, self._name = runner, pipeline, name
        metadata = runner.metadata
        placed = place_image(frame, metadata.config.input, metadata.size)
        self.frames = [frame] * count
        self._batch = [placed] * count
        self.input = placed.canvas, count

    def measure(self, repeats: int, warmup: int, after_turn: Callable[[], object]) -> None:
        """Fill `times`, milliseconds of each function below."""
        self._results = self._pipeline(self.frames)
        functions = self._around() | self._inside()
        self._times = time_interleaved(
            functions, repeats=repeats, warmup=warmup, after_turn=after_turn
        )

    def _around(self) -> Functions:
        """Functions that have the same meaning on every device."""
        pipeline, frames, results = self._pipeline, self.frames, self._results
        outputs = self._runner.run(self._batch)
        empty = [CroppedMask(0, 0, np.zeros((0, 0), bool))] * outputs.outputs["scores"].shape[1]
        without_masks = outputs._replace(crops=[empty] * len(self._batch))
        panoptic: Functions = {}
        if pipeline.config.is_panoptic:
            panoptic["panoptic"] = lambda: pipeline.panoptic(frames)
        return panoptic | {
            "end_to_end": lambda: pipeline(frames),
            "end_to_end_rle": lambda: [result.rle() for result in pipeline(frames)],
            "boxes": lambda: self._to_instances(without_masks),
            "rle": lambda: [result.rle() for result in results],
        }

    def _inside(self) -> Functions:
        """Functions for the steps before the boxes."""
        runner, batch = self._runner, self._batch
        if isinstance(runner, CudaRunner):  # `network` reads what `run` left
            return {"run": lambda: runner.run(batch), "engine": lambda: runner.network(batch)}
        feeds = runner.feeds(batch)
        found = runner.session.run(feeds)
        outputs = runner.finish(found)
        tail: Functions = {}
        if runner.metadata.graph == "detector":
            tail["tail"] = lambda: runner.finish(found)
        return tail | {
            "engine": lambda: runner.session.run(feeds),
            "pipeline": lambda: runner.run(batch),
            "resize": lambda: runner.feeds(batch),
            "boxes_and_paste": lambda: self._to_instances(outputs),
        }

    def _to_instances(self, outputs: BatchOutputs) -> None:
        """The last step of a call of the pipeline; with crops, no masks are pasted."""
        for index, placed in enumerate(self._batch):
            instances_from_outputs(outputs, index, placed, self._runner.metadata.config)

    def nodes(self) -> list[NodeTime]:
        """Times of the nodes of the network; empty if the session can't tell."""
        runner = self._runner
        if isinstance(runner, CpuRunner) and isinstance(runner.session, Profiled):
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
        if "tail" in times:  # of a detector graph, whose network ends before
            after = {"NMS and mask heads": _p50(times["tail"])} | after
        network = layer_times(nodes)
        scale = engine / sum(network.values()) if network else 0
        network = {part: ms * scale for part, ms in network.items()} or {"network": engine}
        return before | network | after | {"RLE": _p50(times["rle"])}


def _less(times_ms: Sequence[float], part_ms: Sequence[float]) -> list[float]:
    """The rest of each timing without a part that was timed apart; 0 where that took longer."""
    return [max(0.0, whole - part) for whole, part in zip(times_ms, part_ms, strict=True)]


def _p50(times_ms: Sequence[float]) -> float:
    return summary(times_ms)["p50"]
