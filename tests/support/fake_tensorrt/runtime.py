"""Runtime, engine, inspector and execution context."""

import ctypes
import json
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.support.fake_tensorrt.types import ILogger, TensorIOMode, nptype, state, tensors_of


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        state.seen.append(serialized_engine)
        if not serialized_engine.startswith(b"FAKE"):
            self._logger.log(ILogger.Severity.ERROR, "magic tag does not match")
            return None
        end = 8 + int.from_bytes(serialized_engine[4:8], "little")
        return ICudaEngine(json.loads(serialized_engine[8:end]), serialized_engine[end:])


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
    def __init__(self, header: dict[str, Any], data: bytes) -> None:
        self._profile, self._layers = header["profile"], header["layers"]
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

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, runtime_config: Any = None) -> "IExecutionContext":
        state.contexts.append(IExecutionContext(self, runtime_config))
        return state.contexts[-1]


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, settings: Any) -> None:
        self._engine, self._settings = engine, settings
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
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

    def execute_async_v3(self, stream_handle: int) -> bool:
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        if set(addresses) != set(self._engine._tensors) or len(shapes) != 2:
            return False
        if stream_handle not in state.traces:
            self._compute(shapes, addresses)
            self._ran = True
        elif self._ran:
            state.traces[stream_handle].append(lambda: self._compute(shapes, addresses))
        return self._ran  # TensorRT wants a plain run before it is captured

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        kinds = {name: nptype(self._engine.get_tensor_dtype(name)) for name in shapes}
        feeds = {name: _memory(addresses[name], shapes[name], kinds[name]) for name in shapes}
        names = [name for name in addresses if name not in feeds]
        for name, value in zip(names, self._engine._session.run(names, feeds), strict=True):
            array = np.asarray(value)
            _memory(addresses[name], array.shape, array.dtype)[...] = array


def _memory(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What lies at an address of the CUDA emulator."""
    size = prod(shape) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.ndarray(shape, dtype, memoryview(raw))
