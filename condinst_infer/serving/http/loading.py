"""Responses of the server while its model is loading."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_SOON = {"Retry-After": "1"}
_HEALTH = JSONResponse({"status": "loading", "ready": False}, 503, _SOON)
_OTHER = JSONResponse({"error": "the model is loading; try again in a second."}, 503, _SOON)


class LoadingApp:
    """An ASGI application that responds with 503 until `app` is set, and then passes on to it."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app or (_HEALTH if scope["path"] == "/health" else _OTHER)
        await app(scope, receive, send)
