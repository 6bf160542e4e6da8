"""Methods: HEAD and OPTIONS of every path, and 405 for those that a path does not take."""

from collections.abc import Iterable

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class MethodsApp:
    """An application whose GET is also a HEAD.

    Args:
        app: that of the routes.
        routes: other paths are left to `app`.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._methods: dict[str, set[str]] = {}
        for route in routes:
            if isinstance(route, Route):
                methods = self._methods.setdefault(route.path, {"OPTIONS"})
                methods |= route.methods or set()
        for methods in self._methods.values():
            if "GET" in methods:
                methods.add("HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._methods.get(scope["path"]) if scope["type"] == "http" else None
        if methods is None:
            await self._app(scope, receive, send)
            return
        allow = {"Allow": ", ".join(sorted(methods))}
        if scope["method"] not in methods:
            text = f"this path takes {'POST' if 'POST' in methods else 'GET'}, not another method."
            await JSONResponse({"error": text}, 405, allow)(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=allow)(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, _without_body(send))
        else:
            await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    """Send the head of a response alone; Content-Length stays that of the body."""

    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
