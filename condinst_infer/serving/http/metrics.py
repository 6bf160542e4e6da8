"""Metrics of the HTTP server, for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TYPE = "text/plain; version=1.0.0; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server.

    Args:
        queue: how many images wait for a worker.
        paths: those that are counted under their name.
    """

    def __init__(self, queue: Callable[[], int], paths: frozenset[str]) -> None:
        self._registry = registry = CollectorRegistry()
        self._paths = paths
        self.requests = Counter(
            "condinst_requests", "Requests with a response.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "condinst_request_seconds",
            "From the head of a request to the end of its response.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "condinst_batch_images",
            "Images a worker gave the model together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        Gauge(
            "condinst_queue_images", "Images that wait for a worker.", registry=registry
        ).set_function(queue)

    def text(self) -> bytes:
        """All of it in the text format."""
        return generate_latest(self._registry)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one request that has got its response."""
        path = path if path in self._paths else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)


class CountingApp:
    """An application whose requests are counted just before their last byte goes out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, status = time.perf_counter(), 0

        async def count_and_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                self._metrics.count(scope["path"], status, time.perf_counter() - start)
            await send(message)

        await self._app(scope, receive, count_and_send if scope["type"] == "http" else send)
