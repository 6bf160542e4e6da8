"""Operations on a GPU in order, the memory they work on, and CUDA graphs of them."""

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.kernels import Launch
from condinst_infer.errors import SessionError

_CAPTURE_THIS_THREAD = (
    1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
)
_NON_BLOCKING = 1  # a stream that does not wait for the default one
_DEFAULT_STREAM = 1  # the legacy one, which PyTorch, CuPy and PyCUDA use unless told otherwise
_NO_TIMING = 2  # an event that only orders


class Stream:
    """Operations in order, and the memory they work on.

    Not for two threads at once. Pointers handed to the driver belong to arrays that this object
    keeps until `close`.
    """

    def __init__(self, device: Device) -> None:
        self.device, self._do = device, device.call
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self._events: list[Any] = []
        self.workspace = Workspace(self)
        self._stream: Any = self._do("cuStreamCreate", _NON_BLOCKING)

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
        self._finish()
        for array in arrays:
            self._device_memory.remove(array.pointer)
            self.device.release("cuMemFree", array.pointer)

    def free_pinned(self, array: np.ndarray) -> None:
        """Give back what `allocate_pinned` gave; no view of it may be used any more."""
        self._finish()
        self._host_memory.remove(array.ctypes.data)
        self.device.release("cuMemFreeHost", array.ctypes.data)

    def free_all(self) -> None:
        """Give back all memory and events; no array of this stream may be used any more."""
        self._finish()
        for name, handles in (
            ("cuMemFree", self._device_memory),
            ("cuMemFreeHost", self._host_memory),
            ("cuEventDestroy", self._events),
        ):
            for handle in handles:
                self.device.release(name, handle)
            handles.clear()
        self.workspace.forget()

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
        except BaseException:
            self._abandon_capture()
            raise
        return Graph(self, self._do("cuStreamEndCapture", self._stream))

    def _abandon_capture(self) -> None:
        try:
            graph = self._do("cuStreamEndCapture", self._stream)
        except SessionError:  # the error that ended the capture says more
            return
        self.device.release("cuGraphDestroy", graph)

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
            self.device.release("cuEventDestroy", event)  # the wait stays

    def event(self) -> Any:
        """A mark to put between operations with `mark`; valid until `close`."""
        event = self._do("cuEventCreate", _NO_TIMING)
        self._events.append(event)
        return event

    def mark(self, event: Any) -> None:
        """Put `event` behind all work so far."""
        self._do("cuEventRecord", event, self._stream)

    def wait_until(self, event: Any) -> None:
        """Wait until the work before the last `mark` of `event` is done."""
        self._do("cuEventSynchronize", event)

    def synchronize(self) -> None:
        """Wait until all is done."""
        self._do("cuStreamSynchronize", self._stream)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Time the device takes for what `work` puts on this stream."""
        events: list[Any] = []
        try:
            events += [self._do("cuEventCreate", 0)]
            events += [self._do("cuEventCreate", 0)]
            start, end = events
            self._do("cuEventRecord", start, self._stream)
            work()
            self._do("cuEventRecord", end, self._stream)
            self._do("cuEventSynchronize", end)
            return float(self._do("cuEventElapsedTime", start, end))
        finally:
            for event in events:
                self.device.release("cuEventDestroy", event)

    def close(self) -> None:
        """Wait, then free the memory; a second call does nothing."""
        if self._stream is None:
            return
        self.free_all()
        self.device.release("cuStreamDestroy", self._stream)
        self._stream = None

    def _finish(self) -> None:
        """Wait before memory is given back, also after a failure that somebody was told of."""
        self.device.release("cuStreamSynchronize", self._stream)

    def _check_copy(self, host: np.ndarray, device: DeviceArray, name: str) -> None:
        if not host.flags.c_contiguous or (host.shape, host.dtype) != (device.shape, device.dtype):
            raise ValueError(
                f"{name} between {host.dtype} {host.shape} and {device.dtype} {device.shape}"
            )


class Workspace:
    """Scratch memory of the networks on one stream, as much as the one with the most needs.

    Work on a stream is done in order, so it can be shared. CUDA graphs hold its address: they are
    good as long as `generation` is what it was.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._memory: DeviceArray | None = None
        self.generation = 0

    def reserve(self, size: int) -> DeviceArray:
        """At least `size` bytes, aligned to 256; larger memory takes the place of the former."""
        if self._memory is None or self._memory.nbytes < size:
            if self._memory is not None:
                self._stream.free(self._memory)
            self.forget()
            self._memory = self._stream.empty((size,), np.uint8)
        return self._memory

    def forget(self) -> None:
        """The memory is not there any more."""
        self._memory = None
        self.generation += 1


class Graph:
    """Captured work of one stream."""

    def __init__(self, stream: Stream, graph: Any) -> None:
        self._stream, self._device = stream, stream.device
        self._executable: Any = None
        try:
            self._executable = self._device.call("cuGraphInstantiate", graph, 0)
        finally:
            self._device.release("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Put the captured work on its stream once more."""
        self._device.call("cuGraphLaunch", self._executable, self._stream._stream)

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self._executable is not None:
            self._device.release("cuGraphExecDestroy", self._executable)
            self._executable = None
