"""From uploads to answers: decode, find, and write what was found as JSON or as a picture."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer.pipeline import Pipeline
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.serving.http.failures import failure
from condinst_infer.serving.http.upload import decoded


class Order(NamedTuple):
    """What one request wants."""

    data: bytes  # an image file
    panoptic: bool
    overlay: bool
    options: tuple[tuple[str, Any], ...]  # of the call of the pipeline


class Answer(NamedTuple):
    """What it gets."""

    content: bytes
    media_type: str
    status: int = 200


class Answers:
    """Calls of one pipeline for the orders of many requests.

    Args:
        pipeline: of the model; not closed here.
        max_pixels: larger images are refused before they are decoded.
        batched: told how many images go into the pipeline together.
    """

    def __init__(self, pipeline: Pipeline, max_pixels: int, batched: Callable[[int], None]) -> None:
        self._pipeline, self._max_pixels, self._batched = pipeline, max_pixels, batched

    def __call__(self, orders: list[Order]) -> list[Answer]:
        """The answer to each order; a bad image spoils no other's."""
        answers: dict[int, Answer] = {}
        images: dict[int, np.ndarray] = {}
        alike: dict[Any, list[int]] = {}  # orders that one call can carry out
        for place, order in enumerate(orders):
            try:
                images[place] = decoded(order.data, self._max_pixels)
                alike.setdefault((order.panoptic, order.options), []).append(place)
            except Exception as error:
                answers[place] = _refusal(error)
        for places in alike.values():
            some, taken = [orders[place] for place in places], [images.pop(p) for p in places]
            try:
                done = self._found(some, taken)
            except Exception as error:
                done = [_refusal(error)] * len(places)
            answers.update(zip(places, done, strict=True))
        return [answers[place] for place in range(len(orders))]

    def _found(self, orders: list[Order], images: list[np.ndarray]) -> list[Answer]:
        """The answers to orders that differ in their images alone."""
        self._batched(len(images))
        find: Any = self._pipeline.panoptic if orders[0].panoptic else self._pipeline
        results = find(images, **dict(orders[0].options))
        return [
            _answer(result, order.overlay) for result, order in zip(results, orders, strict=True)
        ]


def _refusal(error: Exception) -> Answer:
    """No exception leaves the thread: its traceback holds uploads, and the one who gets it holds
    it, until the garbage collector runs, which counts objects and not megabytes.
    """
    status, text, _ = failure(error)
    return Answer(json.dumps({"error": text}).encode(), "application/json", status)


def _answer(result: Instances | PanopticSegmentation, overlay: bool) -> Answer:
    if overlay:
        return Answer(cv2.imencode(".png", result.plot())[1].tobytes(), "image/png")
    data = _instances(result) if isinstance(result, Instances) else _segments(result)
    return Answer(json.dumps(data).encode(), "application/json")


def _instances(result: Instances) -> dict[str, Any]:
    return {
        "image_size": list(result.image_size),
        "boxes": result.boxes.tolist(),
        "scores": result.scores.tolist(),
        "labels": result.labels.tolist(),
        "names": list(result.names),
        "masks": result.rle(),
    }


def _segments(result: PanopticSegmentation) -> dict[str, Any]:
    pairs = zip(result.segments, result.rle(), strict=True)
    segments = [segment.to_dict() | {"mask": rle} for segment, rle in pairs]
    return {"image_size": list(result.id_map.shape), "segments": segments}
