"""The last response on a connection whose client may still send."""

import asyncio
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

LINGER_S = 0.5  # for the way of the response to the client, and of the client's end back


class LastResponse(JSONResponse):
    """A response that is complete for the client before the server closes the connection.

    A connection that is closed while data comes in is reset, which can take the response from a
    client that has not read it yet (RFC 9112, section 9.6). What comes in is dropped.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while (message := await receive())["type"] != "http.disconnect":
                    if not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b""})
