"""Names and types, and what tests tell the stand-in and ask it."""

import enum
from typing import Any

import numpy as np
import onnx

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT32", "UINT8"])
LayerType = enum.Enum("LayerType", ["CONVOLUTION", "DEQUANTIZE", "PLUGIN_V3"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"]
)
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["WHOLE_GRAPH_CAPTURE"])  # of TensorRT-RTX
BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
NetworkDefinitionCreationFlag = enum.IntEnum(
    "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}
)  # the number of 10.9


class State:
    """Of the stand-in, from one `fake_tensorrt()` to the next."""

    def __init__(self) -> None:
        self.version = ""
        self.plugins: set[str] = set()  # node types that are registered
        self.half = False  # whether it turns every network into half precision
        self.complaint = ""  # why it can't build
        self.uncapturable = ""  # why a run can't be captured
        self.largest_scratch = False  # whether it refuses less than the largest shapes need
        self.networks: list[Any] = []
        self.configs: list[Any] = []
        self.seen: list[bytes] = []  # engines it was given
        self.contexts: list[Any] = []
        self.traces: dict[int, list[Any]] = {}  # work put on a stream that is being captured


state = State()


def nptype(kind: Any) -> Any:
    kinds = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "UINT8": np.uint8}
    return kinds[kind.name]


class ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def log(self, severity: Any, msg: str) -> None: ...


class IProgressMonitor:
    pass


class ITensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


def tensors_of(values: Any) -> list[ITensor]:
    """Inputs or outputs of an ONNX graph."""
    kinds = {1: DataType.FLOAT, 10: DataType.HALF, 6: DataType.INT32, 2: DataType.UINT8}
    found = []
    for value in values:
        kind: onnx.TypeProto.Tensor = value.type.tensor_type
        shape = tuple(side.dim_value or -1 for side in kind.shape.dim)
        found.append(ITensor(value.name, kinds[kind.elem_type], shape))
    return found
