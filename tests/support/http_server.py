"""A door on a free port, a pipeline that waits, and pictures to send."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import numpy as np

from condinst_infer.pipeline import Pipeline
from condinst_infer.results.instances import Instances
from condinst_infer.serving.http.app import HttpApp
from condinst_infer.serving.http.limits import ServerLimits
from condinst_infer.serving.http.server import Ending, HttpServer, bind
from tests.support.fake_session import FakeSession

TIMEOUT = httpx.Timeout(30)


class Held(Pipeline):
    """Finds nothing until it may; `calls` are the numbers of images it was given."""

    def __init__(self) -> None:
        super().__init__(FakeSession())
        self.free, self.called, self.calls = threading.Event(), threading.Event(), []

    def __call__(self, source: Any, **options: Any) -> Any:
        self.calls.append(len(source))
        self.called.set()
        assert self.free.wait(30)
        return super().__call__(source, **options)


class Running:
    """A server in a thread."""

    def __init__(
        self, pipeline: Pipeline, limits: ServerLimits, origins: Sequence[str] = ()
    ) -> None:
        self.door = HttpApp(pipeline, "0" * 64, limits)
        self.listener = bind("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        started = threading.Event()
        self.server = HttpServer(
            lambda: self.door, limits.timeout_s, lambda _: started.set(), origins
        )
        self.ending: Ending | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        assert started.wait(30)

    def _serve(self) -> None:
        self.ending = self.server.serve_until_signal(self.listener)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def post(self, path: str = "/predict", **request: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=TIMEOUT, **request)

    def metrics(self) -> dict[str, float]:
        """Every line of /metrics: {name and labels: value}."""
        text = httpx.get(f"{self.url}/metrics", timeout=TIMEOUT).text
        rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}


@contextmanager
def serving(pipeline: Pipeline, *, origins: Sequence[str] = (), **limits: Any) -> Iterator[Running]:
    running = Running(pipeline, ServerLimits(**limits), origins)
    try:
        yield running
    finally:
        running.stop()
        running.door.close()
        running.listener.close()


def picture(place: int) -> np.ndarray:
    """A grey image with one bright rectangle; no two places give the same."""
    image = np.full((60 + place % 3, 90, 3), 20, np.uint8)
    x, y = 4 + place % 8 * 9, 4 + place // 8 * 8
    image[y : y + 16, x : x + 14] = 255
    return image


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


GOOD = png(picture(3))


def as_json(result: Instances) -> dict[str, Any]:
    """What /predict answers for this."""
    return {
        "image_size": list(result.image_size),
        "boxes": result.boxes.tolist(),
        "scores": result.scores.tolist(),
        "labels": result.labels.tolist(),
        "names": list(result.names),
        "class_names": list(result.class_names),
        "category_ids": list(result.category_ids),
        "masks": result.rle(),
    }
