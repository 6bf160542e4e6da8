"""The Python half of engines/capi: plain buffers in, plain buffers out, no exception.

Only libcondinst.so calls this. Every function gives (status, text, value); a status is one of
condinst.h, and value is None unless it is 0.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer import errors
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.processing.options import filter_for
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation

Reply = tuple[int, str, Any]  # (status, text, value)
Frame = tuple[memoryview, int, int, int, int]  # bytes, width, height, stride, channel order
# condinst_channels: bytes of a pixel, and what makes BGR of it
_CHANNELS = (
    (3, None),
    (3, cv2.COLOR_RGB2BGR),
    (4, cv2.COLOR_BGRA2BGR),
    (4, cv2.COLOR_RGBA2BGR),
    (1, cv2.COLOR_GRAY2BGR),
)
_BITS, _BYTES, _RLE = range(3)  # condinst_mask_format
_INTERNAL = 8
_MOST_BYTES = 1000  # of a text; condinst_last_error has room for 1023
_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.ConfigError, 1),
    (errors.ModelFileError, 2),
    (errors.CheckpointError, 2),
    (errors.InputError, 3),
    (errors.SessionError, 4),
    (errors.MissingExtraError, 5),
    (ImportError, 5),
    (MemoryError, 6),
)


def reply_to_c(function: Callable[..., Any]) -> Callable[..., Reply]:
    """`function` with its result, or what it raised, as a reply."""

    @wraps(function)
    def reply(*args: Any) -> Reply:
        try:
            return 0, "", function(*args)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the host decides
            return (*_failure(error), None)

    return reply


def _failure(error: BaseException) -> tuple[int, str]:
    """The status and the one line of an exception."""
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), _INTERNAL)
    if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
        status = 6
    text = _line(str(error))
    if status == _INTERNAL or not text:
        text = f"{type(error).__name__}: {text}"
    return status, text


def _line(text: str) -> str:
    """`text` as one line of UTF-8: bytes of names that are no UTF-8 are shown as escapes."""
    line = " ".join(text.split()).replace("\0", "\\x00")
    try:
        content = line.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # surrogates that are no bytes
        content = line.encode(errors="backslashreplace")
    content = content.decode(errors="backslashreplace").encode()
    if len(content) > _MOST_BYTES:  # keep both ends: a long name is before the reason
        half = _MOST_BYTES // 2
        content = content[:half] + b"..." + content[-half:]
    return content.decode(errors="ignore")  # of halves of characters at the cut


@reply_to_c
def open_model(
    path: bytes,
    device: bytes | None,
    runtime: bytes | None,
    precision: bytes | None,
    threads: int,
    workers: int,
    max_detections: int,
    score_threshold: float,
) -> "CApiModel":
    """Load a model; None and 0 are the defaults.

    Args:
        path: of the file, in the file system's encoding.
        device, runtime, precision: as in `load`.
        threads, workers: as in `load`.
        max_detections, score_threshold: as in a call of the pipeline.
    """

    def text(name: bytes | None) -> str | None:
        return None if name is None else name.decode(errors="replace")

    pipeline = load(
        _file_name(path, errors.ModelFileError),
        device=text(device),
        runtime=text(runtime),
        precision=text(precision),
        threads=threads or None,
        workers=workers or 1,
    )
    try:
        return CApiModel(pipeline, score_threshold or None, max_detections or None)
    except BaseException:
        pipeline.close()
        raise


class ResultParts(NamedTuple):
    """The buffers of a condinst_result; texts end with a zero byte, arrays are contiguous."""

    height: int
    width: int
    mask_format: int
    boxes: np.ndarray  # float32 [K, 4]
    scores: np.ndarray  # float32 [K]
    labels: np.ndarray  # int32 [K]
    crops: np.ndarray  # int32 [K, 4]: x, y, width, height
    names: bytes
    masks: bytes  # one after the other
    ids: np.ndarray | bytes = b""  # int32 [H, W] of a panoptic result
    segments: np.ndarray | bytes = b""  # int64 [S, 9]: condinst_segment without score and name
    segment_scores: np.ndarray | bytes = b""  # float32 [S]
    segment_names: bytes = b""


class CApiModel:
    """A pipeline, and the options that every call with it has."""

    def __init__(
        self, pipeline: Pipeline, score_threshold: float | None, max_detections: int | None
    ) -> None:
        self._pipeline = pipeline
        self._options = {"score_threshold": score_threshold, "max_detections": max_detections}
        filter_for(pipeline.config, **self._options)  # raises here, not in a later call

    @reply_to_c
    def find(self, frames: Sequence[Frame], mask_format: int) -> list[ResultParts]:
        """The instances of each frame."""
        found = self._pipeline(list(map(_bgr, frames)), **self._options)
        return [_parts(instances, mask_format) for instances in found]

    @reply_to_c
    def panoptic(self, frames: Sequence[Frame], mask_format: int) -> list[ResultParts]:
        """The panoptic segmentation of each frame."""
        found = self._pipeline.panoptic(list(map(_bgr, frames)))
        return [_parts(each.instances, mask_format, each) for each in found]

    @reply_to_c
    def read(self, path: bytes) -> tuple[int, int, np.ndarray]:
        """Width, height and BGR pixels of an image file."""
        image = read_image(_file_name(path, errors.InputError))
        return image.shape[1], image.shape[0], image

    @reply_to_c
    def close(self) -> None:
        """Free the model."""
        self._pipeline.close()


def _file_name(path: bytes, error: type[errors.CondInstError]) -> str:
    """The name of a file that C gave as bytes."""
    if not path:
        raise error("the path is empty; give the name of a file.")
    return os.fsdecode(path)


def _bgr(frame: Frame) -> np.ndarray:
    """The caller's own pixels as BGR uint8 [H, W, 3], converted only where they are not."""
    data, width, height, stride, order = frame
    channels, conversion = _CHANNELS[order]
    view = np.ndarray((height, width, channels), np.uint8, data, 0, (stride, channels, 1))
    return view if conversion is None else cv2.cvtColor(view, conversion)


def _parts(
    instances: Instances, mask_format: int, panoptic: PanopticSegmentation | None = None
) -> ResultParts:
    """The buffers that make a condinst_result."""
    height, width = instances.image_size
    crops = np.zeros((len(instances), 4), np.int32)
    if mask_format == _RLE:
        masks = _texts(rle["counts"] for rle in instances.rle())
    else:
        for row, crop in zip(crops, instances.crops, strict=True):
            row[:] = crop.x, crop.y, crop.shape[1], crop.shape[0]
        masks = b"".join(map(_bits if mask_format == _BITS else _bytes, instances.crops))
    parts = ResultParts(
        height,
        width,
        mask_format,
        boxes=np.ascontiguousarray(instances.boxes, np.float32),
        scores=np.ascontiguousarray(instances.scores, np.float32),
        labels=np.ascontiguousarray(instances.labels, np.int32),
        crops=crops,
        names=_texts(instances.names),
        masks=masks,
    )
    return parts if panoptic is None else _with_segments(parts, panoptic)


def _bits(crop: CroppedMask) -> bytes:
    return crop.bits.tobytes()


def _bytes(crop: CroppedMask) -> bytes:
    return crop.mask.tobytes()


def _texts(texts: Iterable[str]) -> bytes:
    """Texts with a zero byte behind each, and in none."""
    return b"".join(text.replace("\0", "").encode(errors="replace") + b"\0" for text in texts)


def _with_segments(parts: ResultParts, panoptic: PanopticSegmentation) -> ResultParts:
    numbers = [
        (
            *(segment.id, segment.is_thing),
            -1 if segment.instance is None else segment.instance,
            *segment.box,
            *(segment.category_id, segment.area),
        )
        for segment in panoptic.segments
    ]
    return parts._replace(
        ids=np.ascontiguousarray(panoptic.id_map, np.int32),
        segments=np.array(numbers, np.int64).reshape(-1, 9),
        segment_scores=np.array([segment.score or 0 for segment in panoptic.segments], np.float32),
        segment_names=_texts(segment.name for segment in panoptic.segments),
    )
