"""Photographs in, Instances out: the stages around one session."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from PIL import Image

from condinst_infer.config import MAX_BATCH, MAX_PIXELS, CondInstConfig
from condinst_infer.errors import ConfigError, ModelFileError, SessionError, require
from condinst_infer.metadata import Metadata
from condinst_infer.postprocess import (
    Classes,
    check_options,
    instances_from_outputs,
    labels_from_classes,
)
from condinst_infer.preprocess import ImageSource, network_image, read_image, stacked
from condinst_infer.result import Instances
from condinst_infer.session import Session, check_threads

Size = tuple[int, int]  # (height, width)


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_batch: int = MAX_BATCH,
) -> "Pipeline":
    """The pipeline around a model file.

    Args:
        path: .onnx (ONNX Runtime) or .safetensors (PyTorch).
        device: "cpu" or "cuda"; a .safetensors file runs on "cpu" only.
        threads: CPU threads of one call, at least 1; None takes all cores.
        max_pixels: larger images are refused before they are decoded.
        max_batch: images a file of dynamic batch is given at once; more cost memory.

    Raises:
        ModelFileError, CheckpointError: missing, not ours, or damaged.
        SessionError: this file can't be run here; the text says what can.
    """
    check_threads(threads)
    session = _session(Path(path), device, threads)
    return Pipeline(session, max_pixels=max_pixels, max_batch=max_batch)


class Pipeline:
    """Finds instances in images with one loaded model.

    Calls from several threads are safe where the session's `run` is: ONNX Runtime's is,
    other sessions say so in their docstring. A pipeline itself keeps nothing between calls.

    Args:
        session: a loaded full graph; the pipeline owns it from now on.
        max_pixels: larger images are refused before they are decoded.
        max_batch: images a file of dynamic batch is given at once.
    """

    def __init__(
        self, session: Session, *, max_pixels: int = MAX_PIXELS, max_batch: int = MAX_BATCH
    ) -> None:
        for name, value in (("max_pixels", max_pixels), ("max_batch", max_batch)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number >= 1.")
        if session.metadata.graph != "full":
            raise SessionError(
                f"this file holds the {session.metadata.graph} cut, which stops before NMS. "
                "Export the whole model: condinst export MODEL.safetensors -o MODEL.onnx "
                "--graph full"
            )
        self._session = session
        self._max_pixels = max_pixels
        self._max_batch = max_batch

    @property
    def metadata(self) -> Metadata:
        """What the model file says about itself."""
        return self._session.metadata

    @property
    def config(self) -> CondInstConfig:
        """The model's configuration."""
        return self.metadata.config

    @overload
    def __call__(
        self,
        source: ImageSource,
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> Instances: ...

    @overload
    def __call__(
        self,
        source: Iterable[ImageSource],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> list[Instances]: ...

    def __call__(
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> Instances | list[Instances]:
        """The instances of one image, or a list with those of each.

        Images of a list are batched only with others of the same padded size, so each result is
        that of a call with this image alone.

        Args:
            source: path, BGR uint8 array [H, W, 3] or PIL image; or an iterable of these.
            score_threshold: lowest reported score, 0 to 1; None keeps all the model reports.
            max_detections: most instances of one image; None keeps all the model reports.
            classes: class names or indices to keep; None keeps all.

        Returns:
            Instances for one image; list[Instances] in the order of an iterable.

        Raises:
            InputError: an image that can't be read; nothing is returned for the others.
            ConfigError: an option out of range.
        """
        check_options(self.config, score_threshold, max_detections)  # before seconds of work
        options = {
            "score_threshold": score_threshold,
            "max_detections": max_detections,
            "classes": None
            if classes is None
            else labels_from_classes(classes, self.config.class_names),
        }
        if _is_one(source):
            return self._results([cast(ImageSource, source)], options)[0]
        return self._results(cast(Iterable[ImageSource], source), options)

    def _results(self, sources: Iterable[ImageSource], options: dict[str, Any]) -> list[Instances]:
        results: dict[int, Instances] = {}
        for batch in _batches(map(self._prepared, sources), self.metadata.batch or self._max_batch):
            outputs = self._session.run(self._feeds(batch))
            for slot, (place, item) in enumerate(batch):
                results[place] = instances_from_outputs(
                    outputs,
                    slot,
                    net_size=item.pixels.shape[:2],
                    image=item.image,
                    config=self.config,
                    **options,
                )
        return [results[place] for place in sorted(results)]

    def _prepared(self, source: ImageSource) -> "_Prepared":
        image = read_image(source, max_pixels=self._max_pixels)
        return _Prepared(image, *network_image(image, self.config.input, self.metadata.size))

    def _feeds(self, batch: "list[tuple[int, _Prepared]]") -> dict[str, np.ndarray]:
        """`images` and `image_sizes`; a file of static batch is filled up with black images."""
        canvas = batch[0][1].canvas
        pixels = [item.pixels for _, item in batch]
        missing = (self.metadata.batch or len(batch)) - len(batch)
        images, image_sizes = stacked(pixels + [np.zeros((*canvas, 3), np.uint8)] * missing, canvas)
        return {"images": images, "image_sizes": image_sizes}

    def close(self) -> None:
        """Free the model; later calls raise SessionError."""
        self._session.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Prepared(NamedTuple):
    """One image on its way into the network."""

    image: np.ndarray  # the original, BGR uint8 [H, W, 3]
    pixels: np.ndarray  # resized, not padded, BGR uint8 [h, w, 3]
    canvas: Size  # padded (height, width)


def _batches(items: Iterable[_Prepared], most: int) -> Iterator[list[tuple[int, _Prepared]]]:
    """Groups of up to `most` items of one canvas, each item with its place in `items`."""
    waiting: dict[Size, list[tuple[int, _Prepared]]] = {}
    for place, item in enumerate(items):
        group = waiting.setdefault(item.canvas, [])
        group.append((place, item))
        if len(group) == most:
            yield waiting.pop(item.canvas)
    yield from waiting.values()


def _is_one(source: Any) -> bool:
    """Whether `source` is one image; what is neither, `read_image` refuses with its reason."""
    single = (str, bytes, os.PathLike, np.ndarray, Image.Image)
    return isinstance(source, single) or not isinstance(source, Iterable)


def _session(path: Path, device: str, threads: int | None) -> Session:
    """The session for a model file, by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from condinst_infer.engines.ort import OrtSession

        return OrtSession(path, device=device, threads=threads)
    if suffix == ".safetensors":
        if device != "cpu":
            raise SessionError(
                f"a .safetensors file runs on the CPU only, not on {device!r}. Export it first: "
                f"condinst export {path} -o {path.with_suffix('.onnx')}"
            )
        for module in ("torch", "safetensors"):
            require(module, "export")
        from condinst_infer import checkpoint
        from condinst_infer.model.session import TorchSession

        digest = checkpoint.file_sha256(path) if path.is_file() else ""  # `load` says what is wrong
        return TorchSession(checkpoint.load(path), checkpoint_sha256=digest, threads=threads)
    if suffix == ".engine":
        raise SessionError(
            f"{path} can't be run: engines come with condinst build, which this version does not "
            "have. Run the .onnx file it was made from."
        )
    raise ModelFileError(f"{path} is no model file; it must end in .onnx or .safetensors.")
