"""One GPU: the only file that calls the CUDA driver.

It works in the primary context, as PyTorch, CuPy and PyCUDA do, so that arrays can be shared.
"""

import ctypes
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from condinst_infer.cuda.kernels import Launch, ptx
from condinst_infer.errors import SessionError, require

_MAJOR, _MINOR = 75, 76  # attributes: compute capability
_MEMORY_TYPE, _DEVICE_ORDINAL = 2, 9  # attributes of a pointer
_HOST_MEMORY = 1  # a memory type
_LOG_BUFFER, _LOG_BYTES = 5, 6  # options of the compiler: for its errors
_INVALID_VALUE, OUT_OF_MEMORY = 1, 2
_LOST = (46, 214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719)  # no later call can work

_log = logging.getLogger(__name__)


class DriverError(SessionError):
    """A call that the driver refused, as one sentence.

    Args:
        call: function of the driver.
        status: its CUresult as a number.
        name: and as a name.
    """

    def __init__(self, call: str, status: int, name: str) -> None:
        self.status, self.out_of_memory = status, status == OUT_OF_MEMORY
        text = f"{call} failed: {name}. See: condinst doctor"
        if self.out_of_memory:
            text = (
                f"the GPU has no memory left ({call}: {name}). End other programs that use it, or "
                "run smaller images or fewer at a time."
            )
        elif status in _LOST:
            text = (
                f"the GPU failed, and this process can't use it any more ({call}: {name}). Start "
                "it again; if that fails too: condinst doctor --gpu-check"
            )
        super().__init__(text)


class Device:
    """One GPU and the kernels loaded on it.

    Raises:
        SessionError: no driver, no GPU, or no GPU of this number.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver: Any = require("cuda.bindings.driver", "cuda")
        try:
            self._call("cuInit", 0)
        except RuntimeError:  # the bindings found no driver library
            raise SessionError(
                "there is no NVIDIA driver here. Run the checkpoint or the .onnx file on the CPU "
                "(device='cpu'), or see: condinst doctor"
            ) from None
        count = self._call("cuDeviceGetCount")
        if not 0 <= index < count:
            raise SessionError(f"there is no GPU {index}; the driver sees {count}.")
        self.index = index
        self._handle = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._handle)
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    @cached_property
    def name(self) -> str:
        return self._call("cuDeviceGetName", 256, self._handle).partition(b"\0")[0].decode()

    @cached_property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""
        attribute = self._driver.CUdevice_attribute
        major, minor = (
            self._call("cuDeviceGetAttribute", attribute(which), self._handle)
            for which in (_MAJOR, _MINOR)
        )
        return major, minor

    @cached_property
    def driver_version(self) -> str:
        """The newest CUDA the driver knows, such as "12.2"."""
        version = self._call("cuDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the calling thread's in a block; after it the one before is again."""
        if getattr(self._thread, "inside", False):
            yield
            return
        before = self._call("cuCtxGetCurrent")
        self._call("cuCtxSetCurrent", self._context)
        self._thread.inside = True
        try:
            yield
        finally:
            self._thread.inside = False
            self._call("cuCtxSetCurrent", before)

    def function(self, launch: Launch) -> Any:
        """The kernel of `launch`, loaded at its first use."""
        key = (launch.source, launch.kernel)
        with self._lock:
            if key not in self._functions:
                if launch.source not in self._modules:
                    self._modules[launch.source] = self._load(launch.source)
                self._functions[key] = self.call(
                    "cuModuleGetFunction", self._modules[launch.source], launch.kernel.encode()
                )
        return self._functions[key]

    def _load(self, source: str) -> Any:
        """The kernels of one .cu file, compiled for this GPU by the driver."""
        image, said = ptx(source).encode() + b"\0", bytearray(8192)
        options = [self._driver.CUjit_option(which) for which in (_LOG_BUFFER, _LOG_BYTES)]
        try:
            return self.call("cuModuleLoadDataEx", image, len(options), options, [said, len(said)])
        except DriverError as error:
            words = " ".join(said.partition(b"\0")[0].decode(errors="replace").split())
            if not words:
                raise
            raise SessionError(f"the driver can't compile {source}.ptx: {words}") from error

    def gpu_of(self, pointer: int) -> int | None:
        """The number of the GPU that holds `pointer`; None if the driver doesn't know it."""
        return self._of_pointer(_DEVICE_ORDINAL, pointer)

    def is_pinned(self, pointer: int) -> bool:
        """True for page-locked memory of the host, ours or another library's."""
        return self._of_pointer(_MEMORY_TYPE, pointer) == _HOST_MEMORY

    def _of_pointer(self, attribute: int, pointer: int) -> int | None:
        which = self._driver.CUpointer_attribute(attribute)
        try:
            return int(self.call("cuPointerGetAttribute", which, pointer))
        except DriverError as error:
            if error.status != _INVALID_VALUE:
                raise
            return None

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Page-locked host memory with anything in it, freed with the last view of it."""
        kind = np.dtype(dtype)
        size = max(1, prod(shape) * kind.itemsize)
        address = int(self.call("cuMemAllocHost", size))
        raw = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(raw, self.release, "cuMemFreeHost", address).atexit = False
        return np.ndarray(shape, kind, memoryview(raw))

    def close(self) -> None:
        """Unload the kernels; the primary context stays, other libraries live in it."""
        with self._lock:
            for module in self._modules.values():
                self.release("cuModuleUnload", module)
            self._modules.clear()
            self._functions.clear()

    def call(self, name: str, *args: Any) -> Any:
        """The outputs of a driver function besides its status, on this GPU in any thread.

        Raises:
            DriverError: the function failed.
        """
        if getattr(self._thread, "inside", False):
            return self._call(name, *args)
        with self.current():
            return self._call(name, *args)

    def release(self, name: str, *args: Any) -> None:
        """Call a function that gives something back; where it fails there is nothing to do."""
        try:
            self.call(name, *args)
        except SessionError as error:  # often of earlier work, which has told its caller
            _log.debug("%s", error)

    def _call(self, name: str, *args: Any) -> Any:
        """`call`, in whatever context the thread has."""
        status, *values = getattr(self._driver, name)(*args)
        if status.value:
            text = self._driver.cuGetErrorName(status)[1]
            raise DriverError(name, status.value, text.decode() if text else str(status))
        return values[0] if len(values) == 1 else tuple(values)
