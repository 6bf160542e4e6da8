"""Responses: decode the uploads, find the instances, and write them as JSON or as a picture."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer.pipeline import Pipeline
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.serving.http.failures import failure
from condinst_infer.serving.http.upload import decode_image


class PredictRequest(NamedTuple):
    """One request, read and checked."""

    data: bytes | np.ndarray  # an image file, or a decoded image, BGR uint8 [H, W, 3]
    panoptic: bool
    overlay: bool
    options: tuple[tuple[str, Any], ...]  # keyword arguments for the pipeline


class PredictResponse(NamedTuple):
    """The response to one request."""

    content: bytes
    media_type: str
    status: int = 200


class RequestHandler:
    """Runs one pipeline on the images of many requests.

    Args:
        pipeline: stays the caller's.
        max_pixels: larger images are rejected before they are decoded.
        observe_batch: called with the number of images that go into the pipeline together.
    """

    def __init__(
        self, pipeline: Pipeline, max_pixels: int, observe_batch: Callable[[int], None]
    ) -> None:
        self._pipeline, self._max_pixels = pipeline, max_pixels
        self._observe_batch = observe_batch

    def __call__(self, requests: list[PredictRequest]) -> list[PredictResponse]:
        """The response to each request; a bad image spoils no other response."""
        responses: dict[int, PredictResponse] = {}
        images: dict[int, np.ndarray] = {}
        alike: dict[Any, list[int]] = {}  # requests that one call of the pipeline can serve
        for index, request in enumerate(requests):
            try:
                images[index] = self._image(request.data)
                alike.setdefault((request.panoptic, request.options), []).append(index)
            except Exception as error:
                responses[index] = _error_response(error)
        for group in alike.values():
            try:
                group_images = [images.pop(index) for index in group]
                done = self._predict([requests[index] for index in group], group_images)
            except Exception as error:
                done = [_error_response(error)] * len(group)
            responses.update(zip(group, done, strict=True))
        return [responses[index] for index in range(len(requests))]

    def _image(self, data: bytes | np.ndarray) -> np.ndarray:
        return data if isinstance(data, np.ndarray) else decode_image(data, self._max_pixels)

    def _predict(
        self, requests: list[PredictRequest], images: list[np.ndarray]
    ) -> list[PredictResponse]:
        """The responses to requests that differ in their images alone."""
        self._observe_batch(len(images))
        predict: Any = self._pipeline.panoptic if requests[0].panoptic else self._pipeline
        results = predict(images, **dict(requests[0].options))
        pairs = zip(results, requests, strict=True)
        return [_response(result, request.overlay) for result, request in pairs]


def _error_response(error: Exception) -> PredictResponse:
    """Turn an exception into a response here.

    A raised exception would keep the upload alive through its traceback until the next garbage
    collection.
    """
    status, text, _ = failure(error)
    return PredictResponse(json.dumps({"error": text}).encode(), "application/json", status)


def _response(result: Instances | PanopticSegmentation, overlay: bool) -> PredictResponse:
    if overlay:
        return PredictResponse(cv2.imencode(".png", result.plot())[1].tobytes(), "image/png")
    return PredictResponse(json.dumps(result.to_dict()).encode(), "application/json")
