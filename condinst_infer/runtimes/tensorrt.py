"""A built engine in TensorRT or TensorRT-RTX, on host arrays or on device memory."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import (
    TensorSpec,
    check_contract,
    check_feeds,
    contract_inputs,
    contract_outputs,
    output_shapes,
)
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.replay import Replay
from condinst_infer.cuda.stream import Stream, Workspace
from condinst_infer.errors import SessionError
from condinst_infer.trt import sidecar
from condinst_infer.trt.libraries import ErrorLog, create, error_log, load_library, specs
from condinst_infer.trt.shape_profile import Shape, ShapeProfile

_IDLE = 4  # bound inputs kept for `run`; each holds a context with its memory, buffers and a graph


class TrtSession:
    """An engine of `condinst build`; safe to call from several threads.

    `run` takes and gives arrays of the host: every call has a stream, a context and buffers of its
    own, which are kept for the next call of that shape. `context` is for those who have their
    data in device memory.

    Args:
        path: the engine; its sidecar lies beside it.
        device_index: the GPU.

    Raises:
        ModelFileError: missing, damaged, changed, or built for another version or GPU.
        SessionError: TensorRT, the driver or the GPU is missing, or can't load it.
    """

    def __init__(self, path: str | os.PathLike[str], *, device_index: int = 0) -> None:
        self.path = Path(path)
        self.sidecar, data = sidecar.read(self.path)
        trt = load_library(self.sidecar.runtime)
        self.sidecar.check_runtime(self.path, trt.__version__)
        self.device = Device(device_index)
        self.sidecar.check_gpu(self.path, self.device.compute_capability)
        self.metadata = self.sidecar.metadata(self.path)
        with self.device.current():
            self._runtime: Any = create(trt, "Runtime")  # has to outlive the engine
            self._engine: Any = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            reason = error_log(trt).pop_first(default="it gives no reason")
            raise SessionError(f"{trt.__name__} can't load {self.path}: {reason}.")
        check_contract(*_tensors(trt, self._engine), self.metadata, self.path)
        self.inputs, self.outputs = contract_inputs(self.metadata), contract_outputs(self.metadata)
        # a function body of NMS is a loop, whose end the host waits for, and of MaskNMS there is no
        # plugin; TensorRT-RTX makes graphs itself, when the kernels for a shape are there
        by_masks = self.metadata.config.detect.nms == "mask"
        looped = self.metadata.graph == "full" and (by_masks or not self.sidecar.plugin)
        self.capturable = trt.__name__ == "tensorrt" and not looped
        self._trt = trt
        self._lock = threading.Lock()
        self._contexts: list[TrtContext] = []
        self._bound: list[_Bound] = []

    def __repr__(self) -> str:
        closed = ", closed" if self._engine is None else ""
        runtime = f"{self._trt.__name__} {self._trt.__version__} on GPU {self.device.index}"
        return f"<TrtSession {self.path}: {self.metadata.describe()}; {runtime}{closed}>"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; `feeds` by name, as `inputs` describes them."""
        check_feeds(self.inputs, feeds)
        n, height, width, _ = feeds["images"].shape
        with self.device.current():
            bound = self._take((n, height, width))
            try:
                outputs = bound.run(feeds)
            except BaseException:
                bound.close()
                raise
            self._keep(bound)
        return outputs

    def context(self) -> "TrtContext":
        """A context no other caller has, until `release`."""
        with self._lock:
            if self._engine is None:
                raise SessionError(f"the session of {self.path} is closed.")
            if self._contexts:
                return self._contexts.pop()
            said = error_log(self._trt)
            said.clear()
            with self.device.current():
                context = _new_context(self._trt, self._engine)
            if context is None:
                reason = said.pop_first(default="it gives no reason")
                raise SessionError(
                    f"{self.path} has no room to run on {self.device.name}: {reason}."
                )
            most = int(self._engine.device_memory_size_v2)
            return TrtContext(context, self.metadata, self.sidecar.profile, said, most)

    def release(self, context: "TrtContext") -> None:
        """Take back a context; graphs that were captured from it must not be launched again."""
        with self._lock:
            if self._engine is not None:
                self._contexts.append(context)

    def close(self) -> None:
        """Free the engine and what no call holds; a second call does nothing."""
        with self._lock:
            bound, self._bound = self._bound, []
            contexts, self._contexts = self._contexts, []
            engine, self._engine = self._engine, None
        with self.device.current():  # where TensorRT frees what lies on the GPU
            while bound:
                bound.pop().close()
            contexts.clear()
            del engine
            self._runtime = None

    def _take(self, shape: Shape) -> "_Bound":
        with self._lock:
            for place, bound in enumerate(self._bound):
                if bound.shape == shape:
                    return self._bound.pop(place)
        return _Bound(self, shape)

    def _keep(self, bound: "_Bound") -> None:
        """Keep `bound` for the next call, instead of the one that was idle longest."""
        with self._lock:
            self._bound.append(bound)
            keep = _IDLE if self._engine is not None else 0
            surplus = [self._bound.pop(0) for _ in range(len(self._bound) - keep)]
        for one in surplus:
            one.close()


class TrtContext:
    """An engine's state for one run at a time.

    Its scratch memory is the workspace of the stream it is put on, as large as the shapes in use
    need it; by itself TensorRT reserves what the largest shapes would, for every context.
    """

    def __init__(
        self, context: Any, metadata: Metadata, profile: ShapeProfile, said: ErrorLog, most: int
    ) -> None:
        """`most`: bytes of scratch memory that the largest shapes need."""
        self._context, self._metadata, self._profile, self._said = context, metadata, profile, said
        self._most = most
        self._shape: Shape | None = None
        self._needed: dict[str, tuple[int, ...]] = {}
        self._scratch = 0  # bytes that the shapes need
        self._placed: tuple[Workspace, int] | None = None  # whose memory it has, and since when

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        """Put a run on `stream`, from `feeds` to `outputs`, all by name.

        May be captured into a graph after one run of the same shape, if the session is
        `capturable`; nothing is allocated then. Such a graph is good until the shape or the
        stream's workspace changes.

        Raises:
            SessionError: a shape the engine was not built for.
        """
        n, height, width, _ = feeds["images"].shape
        if (n, height, width) != self._shape:
            self._profile.check((n, height, width))
            self._needed = output_shapes(self._metadata, n, (height, width))
            for name, array in feeds.items():
                self._ask("set_input_shape", name, array.shape)
            self._scratch = int(self._context.update_device_memory_size_for_shapes()) or self._most
            self._placed = None
            self._shape = (n, height, width)
        found = {name: array.shape for name, array in outputs.items()}
        if found != self._needed:  # a write outside of them would go unnoticed
            raise SessionError(f"the outputs have shapes {found}, needed are {self._needed}.")
        self._place(stream.workspace)
        for name, array in (*feeds.items(), *outputs.items()):
            self._ask("set_tensor_address", name, array.pointer)
        self._ask("execute_async_v3", stream.handle)

    def _place(self, workspace: Workspace) -> None:
        """Give TensorRT its scratch memory, if it has other memory or none."""
        memory = workspace.reserve(self._scratch)
        if self._placed == (workspace, workspace.generation):
            return
        self._said.clear()
        self._context.set_device_memory(memory.pointer, memory.nbytes)
        if self._said and memory.nbytes < self._most:  # this version wants what the largest need
            self._scratch = self._most
            memory = workspace.reserve(self._scratch)
            self._context.set_device_memory(memory.pointer, memory.nbytes)
        self._placed = (workspace, workspace.generation)

    def _ask(self, name: str, *args: Any) -> None:
        """Call a function of the context that gives False when it fails."""
        if not getattr(self._context, name)(*args):
            self._shape = None
            reason = self._said.pop_first(default="it gives no reason")
            raise SessionError(f"TensorRT's {name} failed: {reason}.")


class _Bound:
    """One input shape with all a run of it needs: context, stream, buffers and, later, a graph."""

    def __init__(self, session: TrtSession, shape: Shape) -> None:
        session.sidecar.profile.check(shape)
        self.shape, self._session = shape, session
        n, height, width = shape
        needed = output_shapes(session.metadata, n, (height, width))
        shapes = {"images": (n, height, width, 3), "image_sizes": (n, 2), **needed}
        self._host: dict[str, np.ndarray] = {}
        self._arrays: dict[str, DeviceArray] = {}
        self._stream = Stream(session.device)
        self._replay = Replay(self._stream, session)
        try:
            for name, spec in (session.inputs | session.outputs).items():
                self._host[name] = self._stream.allocate_pinned(shapes[name], spec.dtype)
                self._arrays[name] = self._stream.empty(shapes[name], spec.dtype)
            self._context = session.context()
        except BaseException:
            self._stream.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            self._host[name][...] = array
        self._replay.enqueue(self._work)
        self._stream.synchronize()
        outputs = {name: self._host[name].copy() for name in self._session.outputs}
        self._replay.record(self._work)  # TensorRT wants a plain run before
        return outputs

    def _work(self) -> None:
        ins, outs = (
            {name: self._arrays[name] for name in names}
            for names in (self._session.inputs, self._session.outputs)
        )
        for name, array in ins.items():
            self._stream.upload(array, self._host[name])
        self._context.enqueue(ins, outs, self._stream)
        for name, array in outs.items():
            self._stream.download(self._host[name], array)

    def close(self) -> None:
        self._replay.close()
        self._stream.close()
        self._session.release(self._context)


def _tensors(trt: ModuleType, engine: Any) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs of an engine, by name."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]

    def of(mode: Any) -> dict[str, TensorSpec]:
        return specs(
            trt,
            [
                (name, engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
                for name in names
                if engine.get_tensor_mode(name) == mode
            ],
        )

    return of(trt.TensorIOMode.INPUT), of(trt.TensorIOMode.OUTPUT)


def _new_context(trt: ModuleType, engine: Any) -> Any:
    """A context of `engine` without scratch memory; TensorRT-RTX makes CUDA graphs itself."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if trt.__name__ != "tensorrt_rtx":
        return engine.create_execution_context(strategy)
    settings = engine.create_runtime_config()
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    settings.set_execution_context_allocation_strategy(strategy)
    return engine.create_execution_context(settings)
