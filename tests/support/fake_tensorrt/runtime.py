"""Runtime, engine, inspector and execution context."""

import ctypes
import json
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.support.fake_tensorrt.types import (
    ExecutionContextAllocationStrategy,
    ILogger,
    TensorIOMode,
    nptype,
    state,
    tensors_of,
)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        state.seen.append(serialized_engine)
        if not serialized_engine.startswith(b"FAKE"):
            self._logger.log(ILogger.Severity.ERROR, "magic tag does not match")
            return None
        end = 8 + int.from_bytes(serialized_engine[4:8], "little")
        header = json.loads(serialized_engine[8:end])
        return ICudaEngine(header, serialized_engine[end:], self._logger)


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self._allocation: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._allocation = strategy


class EngineInspector:
    def __init__(self, layers: list[tuple[str, str]]) -> None:
        self._layers = layers

    def get_engine_information(self, format: Any) -> str:
        """Type and memory format in one text until 10, apart from 11 on."""
        layers = []
        for place, (name, kind) in enumerate(self._layers):
            words = {"FLOAT": ("Float", "FP32"), "HALF": ("Half", "FP16")}.get(kind, ("Int32", ""))
            output = {"DataType": words[0], "Format": f"Row major linear {words[1]} format"}
            if state.version.startswith("10."):
                output = {"Format/Datatype": output["Format"]}
            note = f"[ONNX Layer: {name}]"
            layers.append({"Name": f"__myl_{place}", "Metadata": note, "Outputs": [output]})
        return json.dumps({"Layers": layers})


class ICudaEngine:
    def __init__(self, header: dict[str, Any], data: bytes, logger: ILogger) -> None:
        self._profile, self._layers = header["profile"], header["layers"]
        self._logger = logger
        graph = onnx.load_from_string(data).graph
        self._tensors = {t.name: (t, TensorIOMode.INPUT) for t in tensors_of(graph.input)}
        self._tensors |= {t.name: (t, TensorIOMode.OUTPUT) for t in tensors_of(graph.output)}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(data, options)

    num_io_tensors = property(lambda self: len(self._tensors))

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._tensors[name][1]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name][0].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][0].shape

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._layers)

    device_memory_size_v2 = property(
        lambda self: _scratch(self._profile["images"][2]) if self._profile else 1 << 20
    )

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, settings: Any = None) -> "IExecutionContext":
        """`settings`: a strategy, or a configuration with one."""
        allocation = getattr(settings, "_allocation", settings)
        assert allocation is ExecutionContextAllocationStrategy.USER_MANAGED
        state.contexts.append(IExecutionContext(self, settings))
        return state.contexts[-1]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, settings: Any) -> None:
        self._engine, self._settings = engine, settings
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)  # scratch: address and bytes
        self._ran = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._profile.get(name, (shape, shape, shape))
        if any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        self._ran = False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._tensors

    def update_device_memory_size_for_shapes(self) -> int:
        return _scratch(self._shapes["images"])

    def set_device_memory(self, memory: int, size: int) -> None:
        if state.largest_scratch and size < self._engine.device_memory_size_v2:
            self._complain(f"{size} bytes of memory are not enough")
        else:
            self._memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if set(addresses) != set(self._engine._tensors) or len(shapes) != 2:
            return False
        memory, size = self._memory
        if size < _scratch(shapes["images"]) or memory % 256:
            self._complain("the context has no memory")
            return False
        if stream_handle not in state.traces:
            self._compute(shapes, addresses, memory)
            self._ran = True
        elif state.uncapturable:
            self._complain(state.uncapturable)
            return False
        elif self._ran:
            state.traces[stream_handle].append(lambda: self._compute(shapes, addresses, memory))
        return self._ran  # TensorRT wants a plain run before it is captured

    def _complain(self, text: str) -> None:
        self._engine._logger.log(ILogger.Severity.ERROR, text)

    def _compute(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int], memory: int
    ) -> None:
        ctypes.memset(memory, 0xEE, _scratch(shapes["images"]))  # nobody else's
        kinds = {name: nptype(self._engine.get_tensor_dtype(name)) for name in shapes}
        feeds = {name: _memory(addresses[name], shapes[name], kinds[name]) for name in shapes}
        names = [name for name in addresses if name not in feeds]
        for name, value in zip(names, self._engine._session.run(names, feeds), strict=True):
            array = np.asarray(value)
            _memory(addresses[name], array.shape, array.dtype)[...] = array


def _scratch(shape: Sequence[int]) -> int:
    """Bytes of memory for one run on `images` of this shape."""
    return 2 * prod(shape)


def _memory(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What lies at an address of the CUDA emulator."""
    size = prod(shape) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.ndarray(shape, dtype, memoryview(raw))
