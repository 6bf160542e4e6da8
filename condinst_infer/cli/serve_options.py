"""The options of `condinst serve`."""

import argparse
from pathlib import Path

from condinst_infer.cli import options
from condinst_infer.cli.options import Verbs, add_runtime, add_verb
from condinst_infer.serving.http.limits import Limits


def add_serve(verbs: Verbs) -> None:
    """The verb with its options."""
    verb = add_verb(
        verbs,
        "serve",
        "answer images sent over HTTP with their instances, and show them on a page",
        "condinst serve model.onnx --port 8000\n"
        "  curl -F image=@street.jpg 'http://127.0.0.1:8000/predict?score_threshold=0.4'\n"
        "  curl -F image=@street.jpg 'http://127.0.0.1:8000/predict?output=overlay' -o o.png\n\n"
        "There is no password and no encryption: leave the host as it is, or put a proxy before "
        "it.\nSIGTERM and Ctrl-C end it when the requests in flight are answered.",
    )
    verb.add_argument(
        "model", type=Path, metavar="MODEL", help="an .onnx, .engine or .safetensors file"
    )
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s)"
    )
    for name, kind, default, unit, text in (
        ("--port", _port, 8000, "N", "port to listen at; 0 takes a free one"),
        ("--max-bytes", options.positive, Limits.max_bytes, "N", "refuse larger requests"),
        ("--max-pixels", options.positive, Limits.max_pixels, "N", "refuse larger images"),
        ("--queue", options.positive, Limits.queue, "N", "refuse more requests at once than these"),
        ("--timeout", _seconds, Limits.timeout_s, "S", "seconds from a request to its answer"),
        ("--wait-ms", _seconds, Limits.wait_ms, "MS", "of --batch: wait so long for more images"),
    ):
        help_ = f"{text} (default: %(default)s)"
        verb.add_argument(name, type=kind, default=default, metavar=unit, help=help_)
    add_runtime(verb)
    verb.set_defaults(command="condinst_infer.cli.serve:serve")


def _port(text: str) -> int:
    """0 to 65535."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    """A time above 0, at most a day of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
