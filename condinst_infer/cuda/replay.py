"""Work that is put on a stream again and again: as a CUDA graph where that is possible."""

import logging
from collections.abc import Callable
from typing import Protocol

from condinst_infer.cuda.stream import Graph, Stream
from condinst_infer.errors import SessionError

_log = logging.getLogger(__name__)


class Capturable(Protocol):
    """Something with work that may become part of a CUDA graph."""

    capturable: bool


class Replay:
    """Work on `stream` with the network of `session`, and the graph of it once it is recorded.

    A graph is there for speed: if the driver or the network refuses it, this is logged once,
    `session.capturable` becomes False, and the work is put on the stream piece by piece.
    """

    def __init__(self, stream: Stream, session: Capturable) -> None:
        self._stream, self._session = stream, session
        self._graph: Graph | None = None

    def enqueue(self, work: Callable[[], None]) -> None:
        """Put `work` on the stream, as its graph if there is one."""
        if self._graph is not None:
            try:
                return self._graph.launch()
            except SessionError as error:
                self._refuse(error)
                self.close()
        work()

    def record(self, work: Callable[[], None]) -> None:
        """Make a graph of `work`, which has run before; a second call does nothing."""
        if self._graph is None and self._session.capturable:
            try:
                self._graph = self._stream.graph(work)
            except Exception as error:  # whatever the network's library raises
                self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        if self._session.capturable:
            _log.warning("%r runs without CUDA graphs, a little slower: %s", self._session, error)
        self._session.capturable = False

    def close(self) -> None:
        """Free the graph; a second call does nothing."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
