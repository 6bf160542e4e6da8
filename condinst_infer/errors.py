"""Errors a user can act on.

CondInstError
  InputError        an image or another input that can't be used
  ConfigError       a configuration that makes no model, or an option out of range
  CheckpointError   a weight file that does not fit
  ModelFileError    an .onnx or .engine that is not ours, damaged or of another contract
  SessionError      a runtime that is missing or rejected the file or the feeds
  TrainingError     a training that can't go on
  ParityError       two artefacts that should agree and don't
  MissingExtraError a package that an extra would have installed
"""

import difflib
import importlib
import reprlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class CondInstError(Exception):
    """Base of every error this package raises on purpose; its text is one clear sentence.

    A text that is longer than a screen, with a value from a file in it, is cut in the middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-400:]}"


class InputError(CondInstError):
    """An image or another input that can't be used."""


class ConfigError(CondInstError):
    """A configuration that makes no model, or an option out of range."""


class CheckpointError(CondInstError):
    """A weight file that does not fit the network."""


class ModelFileError(CondInstError):
    """A model file that is not ours, is damaged or follows another contract."""


class SessionError(CondInstError):
    """A runtime that is missing, or that rejected the file or the feeds."""


class TrainingError(CondInstError):
    """A training that can't go on."""


class ParityError(CondInstError):
    """Two artefacts that should agree and don't."""


class MissingExtraError(CondInstError):
    """A package that an extra of this distribution would have installed."""


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """A "; did you mean NAME?" hint for the `most` closest matches, or "." if there is none."""
    near = difflib.get_close_matches(name[:100], list(known), most)  # a long text takes minutes
    return f"; did you mean {' or '.join(near)}?" if near else "."


def shorten(value: Any) -> str:
    """`value` as Python writes it, cut where it is long or deep: errors show what was given."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 100, 100, 40
_SHORT.maxtuple = _SHORT.maxlist = 12


def require(module: str, extra: str) -> ModuleType:
    """The imported `module`, or a MissingExtraError that names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something of its own
        raise MissingExtraError(
            f"{module} is not installed. Install it: pip install 'condinst-infer[{extra}]'"
        ) from None
