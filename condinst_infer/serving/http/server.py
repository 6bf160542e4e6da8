"""The HTTP server on a port, from before its model is loaded until a signal ends it.

The port is taken first: of two servers on one port, the second fails before it loads anything.
While the model loads, in a thread, all requests get 503.

A worker hangs when one call of the model takes longer than the time that a request has. /health
says so. Python can't end a thread, and a new one beside it would need the memory of another model,
so a worker that hangs `HANG` times as long ends the server: requests in flight get their response
or their time-out, the exit status is 1, and whoever supervises the server starts it again.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from condinst_infer.errors import ConfigError
from condinst_infer.serving.http.app import HttpApp
from condinst_infer.serving.http.loading import LoadingApp
from condinst_infer.serving.http.protocol import Protocol

HANG = 2  # times the time of a request: a call that takes as long ends the server
UPLOAD_S = 1.0  # for half an upload when a signal comes: its client can send it elsewhere
_BACKLOG = 128  # connections that wait to be accepted
_QUIET_S = 10.0  # after an error of the system: without a free descriptor, each connection is one
_LONGEST_TICK_S = 1.0  # what is longer, the process was stopped or the machine asleep
_CLOSE_S = 1.0  # for threads whose clients have all gone
_log = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the port, 0 for any; who connects waits until it is served.

    Only one socket can listen on a port. Several can be bound to it, because of SO_REUSEADDR.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "not a host name"
        raise ConfigError(
            f"port {port} of {host} can't be opened: {reason}. Choose others: --host, --port"
        ) from None
    return listener


class Ending(NamedTuple):
    """The end of a server, for its process."""

    status: int  # to exit with
    text: str  # a sentence about it, or ""
    threads: bool  # True if threads are left that only the end of the process ends


class HttpServer(uvicorn.Server):
    """Serves an application that is still to be loaded; `should_exit` ends it.

    Args:
        load: makes the application, in a thread of its own.
        timeout_s: that of the application's requests.
        ready: called once, in that thread, when requests are taken.
        origins: pages of these may read the responses, "*" for any; see CORS.
    """

    def __init__(
        self,
        load: Callable[[], HttpApp],
        timeout_s: float,
        ready: Callable[[HttpApp], None] = lambda _: None,
        origins: Sequence[str] = (),
    ) -> None:
        self._load, self._ready, self._timeout_s = load, ready, timeout_s
        self._entrance, self._loader = LoadingApp(), threading.Thread(target=self._open)
        self._loader.daemon = True
        self._app: HttpApp | None = None
        self._error: BaseException | None = None  # of `load`
        self._hung = False
        self._unanswered = 0
        self._idle: dict[Any, tuple[float, int]] = {}  # connection: seconds, bytes to be read
        self._ticked = self._quiet_until = time.monotonic()
        # by then all have their response, but some clients do not read it
        self._grace_s = math.ceil(timeout_s) + 1
        super().__init__(
            uvicorn.Config(
                _for_origins(self._entrance, origins),
                http=Protocol,
                lifespan="off",
                ws="none",
                backlog=_BACKLOG,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=self._grace_s + 5,  # `_abort` comes first
            )
        )

    def serve_until_signal(self, listener: socket.socket) -> Ending:
        """Serve; SIGTERM and Ctrl-C let requests in flight get their response first.

        Raises what `load` raised.
        """
        with self._stopped_by_signals() as came:
            self.run([listener])
            left = self._loader.is_alive() or not (self._app is None or self._app.close(_CLOSE_S))
        if self._error is not None:
            raise self._error
        text = f"interrupted; {self._work_left()}." if came else ""
        return Ending(128 + came[0] if came else int(self._hung), text, left)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve_until_signal`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take requests, and begin to load."""
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(self._log_loop_error)
        self._loader.start()

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second after the workers; True ends the server."""
        now = time.monotonic()
        seconds, self._ticked = min(now - self._ticked, _LONGEST_TICK_S), now
        self._close_idle(seconds)
        if self._app is not None:
            self._app.batcher.age_calls(seconds)
            self._look_for_hanging(self._app)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests, and wait for those in flight, though not for ever."""
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._abort)
        if self._app is not None:
            self._app.end_uploads(UPLOAD_S)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[list[int]]:
        """The signals that came, SIGINT or SIGTERM: the second ends the process at once."""
        came: list[int] = []
        if threading.current_thread() is not threading.main_thread():
            yield came  # only that thread may set a handler
            return

        def note(number: int, _frame: Any) -> None:
            if came:  # an exception here would come out of any line of the event loop
                os._exit(128 + number)
            came.append(number)
            self.should_exit = True

        before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield came
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _open(self) -> None:
        """Load the application and let requests in."""
        try:
            app = self._load()
        except BaseException as error:  # for the thread that serves
            self._error, self.should_exit = error, True
            return
        self._app, self._entrance.app = app, app.asgi
        self._ready(app)

    def _look_for_hanging(self, app: HttpApp) -> None:
        limit_s = HANG * self._timeout_s
        hanging = app.batcher.hanging(limit_s)
        if hanging and not self._hung:
            self._hung = self.should_exit = True
            _log.error(
                "%d of %d workers hang: no result of the model within %g s. The server ends; "
                "start it again, with a longer --timeout if its images take as long.",
                *(hanging, app.limits.workers, limit_s),
            )

    def _close_idle(self, seconds: float) -> None:
        """Close connections whose clients neither send a request nor read their response.

        Each holds one of a thousand descriptors, and its response.
        """
        idle: dict[Any, tuple[float, int]] = {}
        for each in self.server_state.connections:
            if _waits_for_client(each):
                unread = each.transport.get_write_buffer_size()
                age_s, before = self._idle.get(each, (0.0, unread))
                idle[each] = (age_s + seconds if unread == before else 0.0), unread
        self._idle = idle
        for connection, (age_s, _) in idle.items():
            if age_s > self._timeout_s:
                connection.transport.abort()

    def _abort(self) -> None:
        """Close the connections that are left, which ends their requests."""
        self._unanswered = len(self.server_state.connections)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _log_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what the system refused, such as one connection more, in a line now and then."""
        error, now = context.get("exception"), time.monotonic()
        if not isinstance(error, OSError):
            loop.default_exception_handler(context)
        elif now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            _log.error("%s: %s.", context["message"], error.strerror)

    def _work_left(self) -> str:
        if self._app is None:
            return "the model was loading"
        if not self._unanswered:
            return "every request has its response"
        return f"after {self._grace_s} s the server gave up {self._unanswered} requests"


def _for_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app`, whose responses browsers give to pages of these origins too."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST"],
        expose_headers=["Retry-After"],
    )


def _waits_for_client(connection: Any) -> bool:
    """True before the whole head of a request, unless uvicorn's own timer runs, and at the end."""
    between = connection.cycle is None or connection.cycle.response_complete
    return connection.transport.is_closing() or (
        between and connection.timeout_keep_alive_task is None
    )
