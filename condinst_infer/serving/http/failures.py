"""Failures: an HTTP status and one sentence for each exception."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from condinst_infer.errors import CondInstError, ConfigError

_log = logging.getLogger(__name__)
_TEXTS = {
    404: "there is nothing here; GET /openapi.json tells what there is.",
}
CLOSE = {"Connection": "close"}  # for a response after which the connection is closed


class Rejection(Exception):
    """A request that can't be carried out."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


class Failure(NamedTuple):
    """Status, sentence and headers of an error response."""

    status: int
    text: str
    headers: Mapping[str, str] | None = None


def failure(error: Exception) -> Failure:
    """Turn `error` into a `Failure`; errors of our own go to the log too."""
    match error:
        case Rejection():
            return Failure(error.status, str(error), error.headers)
        case ConfigError():
            return Failure(422, str(error))
        case HTTPException():
            text = _TEXTS.get(error.status_code, error.detail)
            return Failure(error.status_code, text, error.headers)
        case ClientDisconnect():  # nobody reads it, but it is counted
            return Failure(499, "the client went away.")
        case CondInstError():
            _log.error("%s", error)
            return Failure(500, str(error))
        case _:
            _log.error("a request made the server fail", exc_info=error)
            return Failure(500, "the server failed; its log says why.")
