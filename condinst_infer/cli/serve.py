"""`condinst serve`: a model behind HTTP."""

import argparse
import logging
import os
import re
from argparse import ArgumentParser
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from condinst_infer.cli.options import (
    MAX_WORKERS,
    RunOptions,
    Verb,
    add_model,
    add_run,
    positive,
)
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.errors import ModelFileError, require
from condinst_infer.pipeline import load
from condinst_infer.serving.http.limits import ServerLimits

if TYPE_CHECKING:
    from condinst_infer.serving.http.app import HttpApp


_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:0*(?P<port>[1-9][0-9]{0,4}))?/?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True, kw_only=True)
class ServeOptions(RunOptions):
    """Options of `condinst serve`."""

    model: Path
    host: str
    port: int
    max_bytes: int
    max_pixels: int
    queue: int
    timeout: float
    wait_ms: float
    cors_origin: list[str]


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `ServeOptions`."""
    add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="N",
        help="port to listen on; 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bytes",
        type=positive,
        default=ServerLimits.max_bytes,
        metavar="N",
        help="reject larger requests (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=ServerLimits.max_pixels,
        metavar="N",
        help="reject larger images (default: %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=ServerLimits.queue,
        metavar="N",
        help="reject requests while N are in flight (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_positive_number,
        default=ServerLimits.timeout_s,
        metavar="S",
        help="longest time from request to response, in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--wait-ms",
        type=_positive_number,
        default=ServerLimits.wait_ms,
        metavar="MS",
        help="longest time an image waits for others to fill --batch, in milliseconds "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--cors-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin use the server, such as https://a.example, or of any "
        "with *; once for each origin (default: none)",
    )
    add_run(parser)


def run(options: ServeOptions) -> int:
    """Serve until a signal comes and all requests in flight have their response."""
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    from condinst_infer.serving.http.console import STDERR, ConsoleHandler, say
    from condinst_infer.serving.http.server import HttpServer, bind

    logging.basicConfig(handlers=[ConsoleHandler()])
    with ExitStack() as stack:
        listener = stack.enter_context(bind(options.host, options.port))
        load_app = partial(_load_app, options, stack)
        announce = partial(_announce, *listener.getsockname()[:2])
        server = HttpServer(load_app, options.timeout, announce, options.cors_origin)
        ending = server.serve_until_signal(listener)
        if ending.text:
            say(STDERR, f"condinst: {ending.text}")
        if ending.threads:  # at the end of Python they would run into freed libraries
            os._exit(ending.status)
    return ending.status


def _load_app(options: ServeOptions, stack: ExitStack) -> "HttpApp":
    """Load the model and make the application; `stack` closes the pipeline."""
    from condinst_infer.serving.http.app import HttpApp

    workers = options.workers_for(MAX_WORKERS * options.batch)
    pipeline = load(
        options.model,
        **options.for_load(),
        workers=workers,
        max_pixels=options.max_pixels,
        max_batch=options.batch,
    )
    stack.enter_context(pipeline)
    limits = ServerLimits(
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        queue=options.queue,
        timeout_s=options.timeout,
        workers=workers,
        batch=max(options.batch, pipeline.metadata.batch or 1),
        wait_ms=options.wait_ms,
    )
    try:
        digest = file_sha256(options.model)
    except OSError as error:
        raise ModelFileError(f"{options.model} can't be read: {error.strerror}.") from None
    return HttpApp(pipeline, digest, limits)


def _announce(host: str, port: int, app: "HttpApp") -> None:
    """Print the address on stdout, or on stderr if that can't be written."""
    from condinst_infer.serving.http.console import STDERR, STDOUT, escape_controls, say

    host = f"[{host}]" if ":" in host else host
    name, workers = escape_controls(app.pipeline.config.name), app.limits.workers
    line = f"{name} is at http://{host}:{port} (workers: {workers})"
    if not say(STDOUT, line):
        say(STDERR, f"condinst: {line}")


def _port(text: str) -> int:
    """Parse 0 to 65535."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _positive_number(text: str) -> float:
    """Parse a time above 0, at most a day of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _origin(text: str) -> str:
    """Parse an origin as browsers send it, or "*"."""
    match = _ORIGIN.fullmatch(text.lower())
    port = match["port"] if match else None
    if text == "*":
        return text
    if match is None or (port and int(port) > 65535):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an origin, scheme://host or scheme://host:port, nor *"
        )
    origin = f"{match['scheme']}://{match['host']}"
    if port and port != _DEFAULT_PORTS.get(match["scheme"]):
        origin += f":{port}"
    if origin != text:
        raise argparse.ArgumentTypeError(f"{text!r} is never sent by a browser, {origin!r} is")
    return origin


VERB = Verb(
    "condinst serve model.onnx --port 8000\n"
    "  curl -F image=@street.jpg 'http://127.0.0.1:8000/predict?score_threshold=0.4'\n"
    "  curl -F image=@street.jpg 'http://127.0.0.1:8000/predict?output=overlay' -o o.png\n\n"
    "There is no password and no encryption: leave the host as it is, or put a proxy before "
    "it.\nSIGTERM and Ctrl-C end it once all requests in flight have their response; a second one "
    "at once. The exit\nstatus is 143 and 130, or 1 if a worker hung.",
    add_options,
    ServeOptions,
    run,
)
