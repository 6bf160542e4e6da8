"""Device memory, streams, kernels and graphs: the only file that calls the CUDA driver.

It works in the primary context, as PyTorch, CuPy and PyCUDA do, so that arrays can be shared.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.kernels import Launch, ptx
from condinst_infer.errors import SessionError, require

_CAPTURE_THIS_THREAD = (
    1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
)
_NON_BLOCKING = 1  # a stream that does not wait for the default one
_DEFAULT_STREAM = 1  # the legacy one, which PyTorch, CuPy and PyCUDA use unless told otherwise
_NO_TIMING = 2  # an event that only orders
_MAJOR, _MINOR = 75, 76  # attributes: compute capability


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
                "there is no NVIDIA driver here. Run the .onnx on the CPU (device='cpu'), or see: "
                "condinst doctor"
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

    def stream(self) -> "Stream":
        """A new stream with its own memory."""
        return Stream(self)

    def function(self, launch: Launch) -> Any:
        """The kernel of `launch`, loaded at its first use."""
        key = (launch.source, launch.kernel)
        with self._lock:
            if key not in self._functions:
                self.activate()
                if launch.source not in self._modules:
                    image = ptx(launch.source).encode() + b"\0"
                    self._modules[launch.source] = self._call("cuModuleLoadData", image)
                function = self._call(
                    "cuModuleGetFunction", self._modules[launch.source], launch.kernel.encode()
                )
                self._functions[key] = function
        return self._functions[key]

    def activate(self) -> None:
        """Make this GPU the calling thread's; every operation of a `Stream` does."""
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Unload the kernels; the primary context stays, other libraries live in it."""
        with self._lock:
            self.activate()
            for module in self._modules.values():
                self._call("cuModuleUnload", module)
            self._modules.clear()
            self._functions.clear()

    def _call(self, name: str, *args: Any) -> Any:
        """The outputs of a driver function besides its status."""
        status, *values = getattr(self._driver, name)(*args)
        if status.value:
            text = self._driver.cuGetErrorName(status)[1]
            reason = text.decode() if text else str(status)
            raise SessionError(f"{name} failed: {reason}. See: condinst doctor")
        return values[0] if len(values) == 1 else tuple(values)


class Stream:
    """Operations in order, and the memory they work on.

    Not for two threads at once. Pointers handed to the driver belong to arrays that this object
    keeps until `close`.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stream: Any = self._do("cuStreamCreate", _NON_BLOCKING)
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []

    @property
    def handle(self) -> int:
        """CUstream as a number, for libraries that want one."""
        return int(self._stream)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """Memory with anything in it; some even for no elements, so that it has an address."""
        kind = np.dtype(dtype)
        pointer = int(self._do("cuMemAlloc", max(1, prod(shape) * kind.itemsize)))
        self._device_memory.append(pointer)
        return DeviceArray(pointer, tuple(shape), kind, self)

    def allocate_pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Host memory that is copied from and to without waiting; valid until `close`."""
        kind = np.dtype(dtype)
        size = max(1, prod(shape) * kind.itemsize)
        address = int(self._do("cuMemAllocHost", size))
        self._host_memory.append(address)
        raw = (ctypes.c_uint8 * size).from_address(address)
        return np.ndarray(shape, kind, memoryview(raw))

    def free(self, *arrays: DeviceArray) -> None:
        """Give back what `empty` or `array` gave, once everything before it is done."""
        self.synchronize()
        for array in arrays:
            self._device_memory.remove(array.pointer)
            self._do("cuMemFree", array.pointer)

    def free_pinned(self, array: np.ndarray) -> None:
        """Give back what `pinned` gave; no view of it may be used any more."""
        self.synchronize()
        self._host_memory.remove(array.ctypes.data)
        self._do("cuMemFreeHost", array.ctypes.data)

    def array(self, host: np.ndarray) -> DeviceArray:
        """A copy of `host` in device memory."""
        target = self.empty(host.shape, host.dtype)
        self.upload(target, host)
        self.synchronize()  # `host` may go away
        return target

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copy C-contiguous `source`, which must not change before the stream has come there."""
        self._check_copy(source, target, "upload")
        if target.nbytes:
            self._do(
                "cuMemcpyHtoDAsync", target.pointer, source.ctypes.data, target.nbytes, self._stream
            )

    def download(self, target: np.ndarray, source: DeviceArray) -> None:
        """Copy to C-contiguous `target`; it is there after `synchronize`."""
        self._check_copy(target, source, "download")
        if source.nbytes:
            self._do(
                "cuMemcpyDtoHAsync", target.ctypes.data, source.pointer, source.nbytes, self._stream
            )

    def fill(self, target: DeviceArray, byte: int) -> None:
        """Set every byte of `target`."""
        if target.nbytes:
            self._do("cuMemsetD8Async", target.pointer, byte, target.nbytes, self._stream)

    def numpy(self, source: DeviceArray) -> np.ndarray:
        """A copy of `source` in host memory, when everything before it is done."""
        target = np.empty(source.shape, source.dtype)
        self.download(target, source)
        self.synchronize()
        return target

    def launch(
        self, launch: Launch, inputs: Sequence[DeviceArray], outputs: Sequence[DeviceArray]
    ) -> None:
        """Run a kernel; one whose grid is empty has nothing to do."""
        if 0 in launch.grid:
            return
        function = self.device.function(launch)
        ins, outs = ([array.pointer for array in arrays] for arrays in (inputs, outputs))
        values = (*ins, *launch.scalars, *outs)
        kinds = (
            *[ctypes.c_void_p] * len(ins),
            *[ctypes.c_int] * len(launch.scalars),
            *[ctypes.c_void_p] * len(outs),
        )
        block = (launch.block, 1, 1)
        self._do(
            "cuLaunchKernel", function, *launch.grid, *block, 0, self._stream, (values, kinds), 0
        )

    def graph(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` puts on this stream, to launch it in one go; nothing runs now."""
        mode = self.device._driver.CUstreamCaptureMode(_CAPTURE_THIS_THREAD)
        self._do("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            graph = self._do("cuStreamEndCapture", self._stream)
        return Graph(self, graph)

    def wait_for(self, source: Any) -> None:
        """Let later work here begin when the work that fills `source` is done.

        That work is on the stream that `__cuda_array_interface__` names, or on the default one.
        """
        number = source.__cuda_array_interface__.get("stream") or _DEFAULT_STREAM
        event = self._do("cuEventCreate", _NO_TIMING)
        try:
            self._do("cuEventRecord", event, number)
            self._do("cuStreamWaitEvent", self._stream, event, 0)
        finally:
            self._do("cuEventDestroy", event)  # the wait stays

    def synchronize(self) -> None:
        """Wait until all is done."""
        self._do("cuStreamSynchronize", self._stream)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Time the device takes for what `work` puts on this stream."""
        start, end = (self._do("cuEventCreate", 0) for _ in range(2))
        try:
            self._do("cuEventRecord", start, self._stream)
            work()
            self._do("cuEventRecord", end, self._stream)
            self._do("cuEventSynchronize", end)
            return float(self._do("cuEventElapsedTime", start, end))
        finally:
            self._do("cuEventDestroy", start)
            self._do("cuEventDestroy", end)

    def close(self) -> None:
        """Wait, then free the memory; a second call does nothing."""
        if self._stream is None:
            return
        self.synchronize()
        for pointer in self._device_memory:
            self._do("cuMemFree", pointer)
        for address in self._host_memory:
            self._do("cuMemFreeHost", address)
        self._device_memory, self._host_memory = [], []
        self._do("cuStreamDestroy", self._stream)
        self._stream = None

    def _do(self, name: str, *args: Any) -> Any:
        """The output of a driver function, on this stream's GPU whatever thread calls."""
        self.device.activate()
        return self.device._call(name, *args)

    def _check_copy(self, host: np.ndarray, device: DeviceArray, name: str) -> None:
        if not host.flags.c_contiguous or (host.shape, host.dtype) != (device.shape, device.dtype):
            raise ValueError(
                f"{name} between {host.dtype} {host.shape} and {device.dtype} {device.shape}"
            )


class Graph:
    """Captured work of one stream."""

    def __init__(self, stream: Stream, graph: Any) -> None:
        self._stream, self._do = stream, stream._do
        self._executable = self._do("cuGraphInstantiate", graph, 0)
        self._do("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Put the captured work on its stream once more."""
        self._do("cuGraphLaunch", self._executable, self._stream._stream)

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._executable is not None:
            self._do("cuGraphExecDestroy", self._executable)
            self._executable = None
