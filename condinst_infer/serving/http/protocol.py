"""HTTP/1.1 of a connection: uvicorn's, whose own error responses are JSON with a sentence too."""

import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from condinst_infer.serving.http.last_response import LINGER_S

_TEXTS = {431: "the headers are too large.", 501: "this Transfer-Encoding is not known."}


class Protocol(H11Protocol):
    """The protocol of one connection, by h11 whatever else is installed."""

    _is_refused = False

    def data_received(self, data: bytes) -> None:
        """Read what comes in, up to what is no HTTP."""
        if not self._is_refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Respond to what is no HTTP, or has a head over 64 KiB, and close the connection.

        It is closed a moment later, for the reason in `LastResponse`.
        """
        self._is_refused = True
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        reason, _, _ = str(error).partition(": bytearray")  # what the client wrote
        text = _TEXTS.get(status, f"this is not HTTP/1.1: {reason}.")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(status, json.dumps({"error": text}).encode())
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its request has no end
            self.cycle.message_event.set()
        self.transport.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _send(self, status: int, content: bytes) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=status, headers=headers)
        for event in (response, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _unsupported_upgrade_warning(self) -> None:
        """Stay with HTTP/1.1 without a line in the log, which clients could fill."""
