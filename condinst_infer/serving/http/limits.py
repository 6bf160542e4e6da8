"""Limits of the HTTP server."""

from dataclasses import dataclass

from condinst_infer.config.model import MAX_BATCH, MAX_PIXELS


@dataclass(frozen=True)
class ServerLimits:
    """The most that the HTTP server takes, and its workers and batches."""

    max_bytes: int = 32_000_000  # of a request's body; photographs of phones have 3 to 12 million
    max_pixels: int = MAX_PIXELS
    queue: int = 64  # requests at once: uploading, waiting or in work; the next ones get 503
    timeout_s: float = 30.0  # from the head of a request to its response
    workers: int = 1
    batch: int = MAX_BATCH
    wait_ms: float = 5.0  # for more images, where a batch may have more than one
