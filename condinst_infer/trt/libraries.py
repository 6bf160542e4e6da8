"""The libraries that build engines: TensorRT, or TensorRT-RTX with the same classes.

TensorRT-RTX is for GeForce and workstation cards. It builds without a GPU and knows no plugin.
"""

import functools
import importlib
import logging
from collections import deque
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from condinst_infer.contract.tensors import TensorSpec
from condinst_infer.errors import ConfigError, MissingExtraError, SessionError

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module: our extra

_log = logging.getLogger(__name__)


def load_library(name: str | None = None) -> ModuleType:
    """The module `name`, or the first of FLAVOURS that is installed.

    Raises:
        MissingExtraError: it is not installed, or none is.
        SessionError: it is installed and can't be loaded.
    """
    if name is not None:
        return _import_library(name)
    for known in LIBRARIES:
        try:
            return _import_library(known)
        except MissingExtraError:
            continue
    raise MissingExtraError(
        "neither tensorrt nor tensorrt_rtx is installed. Install one: "
        "pip install 'condinst-infer[tensorrt]', or for GeForce and workstation cards "
        "pip install 'condinst-infer[tensorrt-rtx]'"
    )


def _import_library(name: str) -> ModuleType:
    if name not in LIBRARIES:
        raise ConfigError(f"the runtime is {name!r}; it must be one of {', '.join(LIBRARIES)}.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingExtraError(
                f"{name} is not installed. Install it: pip install 'condinst-infer"
                f"[{LIBRARIES[name]}]'"
            ) from None
        raise SessionError(f"{name} can't be loaded: {one_line(error)}.") from None
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are missing or too old
        raise SessionError(f"{name} can't be loaded: {one_line(error)}.") from None


def specs(trt: ModuleType, tensors: Iterable[tuple[str, Any, Any]]) -> dict[str, TensorSpec]:
    """TensorSpec by name from (name, its data type, its dimensions with -1 where dynamic)."""
    return {
        name: TensorSpec(
            np.dtype(trt.nptype(dtype)), tuple("?" if side < 0 else side for side in shape)
        )
        for name, dtype, shape in tensors
    }


class ErrorLog:
    """The errors that the library has logged; it raises none with a reason."""

    def __init__(self, logger: Any, messages: "deque[str]") -> None:
        self.logger, self._messages = logger, messages

    def __bool__(self) -> bool:
        return bool(self._messages)

    def clear(self) -> None:
        """Forget the errors so far."""
        self._messages.clear()

    def pop_first(self, default: str) -> str:
        """The first error as a single line, or `default` if there is none; forgets all."""
        text = self._messages[0] if self._messages else default
        self._messages.clear()
        return one_line(text).rstrip(".")


@functools.cache
def error_log(trt: ModuleType) -> ErrorLog:
    """The one logger of this library: the first it is given is the one it keeps."""
    messages: deque[str] = deque(maxlen=100)
    errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    warning = trt.ILogger.Severity.WARNING

    class ErrorLogger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors:
                messages.append(msg)
            _log.log(logging.INFO if severity in (*errors, warning) else logging.DEBUG, "%s", msg)

    return ErrorLog(ErrorLogger(), messages)


def create(trt: ModuleType, kind: str) -> Any:
    """A new `trt.Builder` or `trt.Runtime`.

    Raises:
        SessionError: there is no driver for it, or an older one than it needs.
    """
    said = error_log(trt)
    said.clear()
    try:
        return getattr(trt, kind)(said.logger)
    except TypeError:  # what the bindings make of a null pointer
        reason = said.pop_first(default="it gives no reason")
        raise SessionError(f"{trt.__name__} can't start here: {reason}.") from None


def one_line(error: object) -> str:
    """`error` as a single line."""
    return " ".join(str(error).split())
