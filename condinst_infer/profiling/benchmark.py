"""Benchmark of a model file: latency by stage, memory, and the accuracy of the timed file."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from condinst_infer.config.model import DetectConfig, Size
from condinst_infer.contract.metadata import Metadata, file_sha256
from condinst_infer.contract.model_file import ModelFile, kind_of, model_path
from condinst_infer.datasets.coco import coco_library
from condinst_infer.errors import ConfigError
from condinst_infer.evaluation.average_precision import (
    CocoTruth,
    LabelledImages,
    detect,
    read_truth,
    score,
)
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.preprocess import read_image, resize
from condinst_infer.profiling.environment import PeakMemory, environment
from condinst_infer.profiling.scopes import CLOCKS, FrameScopes
from condinst_infer.runtimes.runner import open_model
from condinst_infer.system.timing import REPEATS, SIZES, WARMUP
from condinst_infer.trt import sidecar


def benchmark(
    path: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    images: Sequence[Path] = (),
    sizes: Sequence[Size] = SIZES,
    batches: Sequence[int] = (),
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    labelled: LabelledImages | None = None,
    progress: Callable[[float], object] = lambda share: None,
) -> dict[str, Any]:
    """Times, memory and accuracy of one model file, as JSON takes it: see `CLOCKS`.

    On a GPU there is no `pipeline`: nothing waits there until the masks have native size.

    Args:
        path: an .onnx, .engine or .safetensors file.
        device, threads, runtime, precision: as in `load`.
        images: frames, each resized to each of `sizes`; none is the bundled micrograph.
        sizes: (height, width).
        batches: frames of one call; none is 1, or the file's own.
        repeats: timed calls of each scope and row; the scopes of a row alternate.
        warmup: untimed calls before these.
        labelled: None measures no accuracy.
        progress: told the share that is done, 0 to 1.

    Raises:
        CondInstError: a file, an image or an option does not fit; the text says which.
    """
    path = model_path(path)
    truth = None if labelled is None else _truth(labelled)  # before minutes of work
    frames = _frames(images)
    memory, start = PeakMemory(), time.perf_counter()
    runner = open_model(path, device, threads, runtime=runtime, precision=precision)
    load_ms = _since(start)
    with closing(runner):
        counts = _counts(batches, runner.metadata, path)
        pipeline = Pipeline(runner, max_batch=max(counts))
        scenes = [
            FrameScopes(runner, pipeline, name, resize(frame, size), count)
            for name, frame in frames.items()
            for size in sizes
            for count in counts
        ]
        start = time.perf_counter()
        pipeline(scenes[0].frames)
        first_ms = _since(start)
        bar = _Counter(progress, len(scenes) * (warmup + repeats))
        for scene in scenes:
            scene.measure(repeats, warmup, bar.count)
        peak = memory.read()  # before profiling, which loads the model again
        profiles = {scene.input: scene for scene in scenes}
        nodes = {key: scene.nodes() for key, scene in profiles.items()}
        return {
            "model": _model(path, runner.metadata, device, threads, runtime, precision),
            "environment": environment(),
            "load_ms": load_ms,
            "first_call_ms": first_ms,
            "memory": peak,
            "clocks": CLOCKS,
            "rows": [scene.result(nodes[scene.input]) for scene in scenes],
            "accuracy": labelled
            and truth
            and _accuracy(pipeline, truth, labelled.images, max(counts)),
        }


class _Counter:
    """Tells the share of `steps` that is done."""

    def __init__(self, progress: Callable[[float], object], steps: int) -> None:
        self._progress, self._steps, self._done = progress, steps, 0

    def count(self) -> None:
        self._done += 1
        self._progress(self._done / self._steps)


def _frames(images: Sequence[Path]) -> dict[str, np.ndarray]:
    """The images by name, BGR uint8 [H, W, 3]; without any, the bundled one."""
    if images:
        return {str(path): read_image(path) for path in images}
    data = resources.files("condinst_infer") / "data" / "nuclei.jpg"
    with resources.as_file(data) as path:
        return {"bundled micrograph": read_image(path)}


def _counts(batches: Sequence[int], metadata: Metadata, path: Path) -> list[int]:
    """Numbers of frames in a call; ConfigError for a number that a static file can't take."""
    if metadata.batch is not None and set(batches) - {metadata.batch}:
        raise ConfigError(
            f"{path} was exported for batches of {metadata.batch}; leave out --batch, or export it "
            "with --batch dynamic."
        )
    return list(batches) or [metadata.batch or 1]


def _model(
    path: Path,
    metadata: Metadata,
    device: str | None,
    threads: int | None,
    runtime: str | None,
    precision: str | None,
) -> dict[str, Any]:
    """The file, and how it was run."""
    kind = kind_of(path)
    runtime = runtime or ("torch" if kind is ModelFile.CHECKPOINT else "onnxruntime")
    if kind is ModelFile.ENGINE:
        built, _ = sidecar.read(path)
        runtime, precision = built.runtime, built.precision_built
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "name": metadata.config.name,
        "precision": precision or metadata.precision,
        "runtime": runtime,
        "device": device or ("cuda" if kind is ModelFile.ENGINE else "cpu"),
        "threads": threads,  # None: as many as the runtime takes
    }


def _truth(labelled: LabelledImages) -> CocoTruth:
    coco_library()
    return read_truth(labelled.annotations, limit=labelled.limit)


def _accuracy(pipeline: Pipeline, truth: CocoTruth, images: Path, batch: int) -> dict[str, Any]:
    found = detect(pipeline, truth, images, batch=batch)
    result = score(truth, found, max_detections=DetectConfig.max_detections)
    return {"annotations": truth.file.name} | asdict(result)


def _since(start: float) -> float:
    """Milliseconds since `start`."""
    return 1000 * (time.perf_counter() - start)
