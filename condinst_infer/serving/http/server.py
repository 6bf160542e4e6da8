"""The HTTP server on a port, until a signal ends it."""

import math
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn

from condinst_infer.errors import ConfigError
from condinst_infer.serving.http.app import HttpApp


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the port, 0 for any, but is not yet listening.

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
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} can't be opened: {error.strerror or error}. "
            "Choose others: --host, --port"
        ) from None
    return listener


class HttpServer(uvicorn.Server):
    """Serves an application; `started` is true when it takes requests, `should_exit` ends it.

    Args:
        app: not closed here.
        listening: called once, when it takes requests.
    """

    def __init__(self, app: HttpApp, listening: Callable[[], None] = lambda: None) -> None:
        self._listening = listening
        super().__init__(
            uvicorn.Config(
                app.asgi,
                lifespan="off",
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                # all have their response by then, but some clients do not read it
                timeout_graceful_shutdown=math.ceil(app.limits.timeout_s) + 1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    def serve_until_signal(self, listener: socket.socket) -> None:
        """Serve; SIGTERM and Ctrl-C let requests in flight get their response first."""
        if threading.current_thread() is not threading.main_thread():
            return self.run([listener])
        # uvicorn raises the signal that ended it again when all is done: nothing more to do then
        before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.run([listener])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
