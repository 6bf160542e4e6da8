"""The two libraries an engine may be made for: TensorRT, or TensorRT-RTX with the same classes.

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

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module: our extra

_log = logging.getLogger(__name__)


def flavour(name: str | None = None) -> ModuleType:
    """The module `name`, or the first of FLAVOURS that is installed.

    Raises:
        MissingExtraError: it is not installed, or none is.
        SessionError: it is installed and can't be loaded.
    """
    if name is not None:
        return _imported(name)
    for known in FLAVOURS:
        try:
            return _imported(known)
        except MissingExtraError:
            continue
    raise MissingExtraError(
        "neither tensorrt nor tensorrt_rtx is installed. Install one: "
        "pip install 'condinst-infer[tensorrt]', or for GeForce and workstation cards "
        "pip install 'condinst-infer[tensorrt-rtx]'"
    )


def _imported(name: str) -> ModuleType:
    if name not in FLAVOURS:
        raise ConfigError(f"the runtime is {name!r}; it must be one of {', '.join(FLAVOURS)}.")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingExtraError(
                f"{name} is not installed. Install it: pip install 'condinst-infer"
                f"[{FLAVOURS[name]}]'"
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


class Complaints:
    """What the library said went wrong, since it was last asked; it only logs its reasons."""

    def __init__(self, logger: Any, said: "deque[str]") -> None:
        self.logger, self._said = logger, said

    def clear(self) -> None:
        self._said.clear()

    def taken(self, otherwise: str) -> str:
        """Its first complaint as one line, or `otherwise` if it made none."""
        text = self._said[0] if self._said else otherwise
        self._said.clear()
        return one_line(text).rstrip(".")


@functools.cache
def complaints(trt: ModuleType) -> Complaints:
    """The one logger of this library: the first it is given is the one it keeps."""
    said: deque[str] = deque(maxlen=100)
    errors = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    warning = trt.ILogger.Severity.WARNING

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if severity in errors:
                said.append(msg)
            _log.log(logging.INFO if severity in (*errors, warning) else logging.DEBUG, "%s", msg)

    return Complaints(Logger(), said)


def started(trt: ModuleType, kind: str) -> Any:
    """A new `trt.Builder` or `trt.Runtime`.

    Raises:
        SessionError: there is no driver for it, or an older one than it needs.
    """
    said = complaints(trt)
    said.clear()
    try:
        return getattr(trt, kind)(said.logger)
    except TypeError:  # what the bindings make of a null pointer
        reason = said.taken("it gives no reason")
        raise SessionError(f"{trt.__name__} can't start here: {reason}.") from None


def one_line(error: object) -> str:
    """Its words without line breaks."""
    return " ".join(str(error).split())
