"""The SHA-256 over the weights of a model file: written with the file, checked later.

It is the SHA-256 of lines of text, sorted, one for each tensor and each ended by a newline:

    NAME TYPE [SHAPE] SHA256

with the hexadecimal SHA-256 of the tensor's bytes, little-endian and in C order. In a checkpoint
the tensors are those of the file, and TYPE is PyTorch's, such as float32. In an ONNX file they are
all initialisers and all constants in nodes, TYPE is ONNX's, such as FLOAT, and NAME tells the place
too: `weight_name` of the graph; `output_name.attribute` of a node; of a subgraph the same after
`output_name.attribute/`, and of a function after `domain::name/`. How ONNX stores the numbers, in
the file or beside it, makes no difference.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from condinst_infer.contract.metadata import model_props
from condinst_infer.errors import CheckpointError, ModelFileError, require

WEIGHTS_KEY = "condinst_weights_sha256"
Part = tuple[str, str, tuple[int, ...], Any]  # name, type, shape, bytes of a tensor

# inputs of these nodes from this one on are weights, however few numbers they are
_WEIGHT_INPUTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "Gemm"), 1),
    **dict.fromkeys(("BatchNormalization", "GroupNormalization", "InstanceNormalization"), 1),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "LayerNormalization"), 1),
    "MatMul": 0,
}


def sha256_of_parts(parts: Iterable[Part]) -> str:
    """The digest that this file describes; one part at a time is in memory."""
    lines = sorted(
        f"{name} {kind} {list(shape)} {hashlib.sha256(data).hexdigest()}\n"
        for name, kind, shape, data in parts
    )
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def onnx_weights_sha256(model: Any) -> str:
    """The digest of an ONNX model in memory, external data included."""
    onnx = require("onnx", "export")
    return sha256_of_parts(_part(onnx, *found) for found in _tensors_of_model(model))


def add_weights_sha256(model: Any) -> None:
    """Write the digest of `model` into the metadata of it, in place of an older one.

    Raises:
        CheckpointError: a weight is not finite.
    """
    if reason := onnx_not_finite(model):
        raise CheckpointError(f"the graph can't be written: {reason}")
    onnx = require("onnx", "export")
    digest = {WEIGHTS_KEY: onnx_weights_sha256(model)}
    onnx.helper.set_model_props(model, model_props(model) | digest)


def check_onnx_weights(model: Any, path: object) -> None:
    """ModelFileError if a weight of the ONNX model in `path` is not finite.

    For runtimes whose ReLU makes a number of NaN: what they put out does not show it.
    """
    if reason := onnx_not_finite(model):
        raise ModelFileError(f"{path}: {reason}")


def onnx_not_finite(model: Any) -> str:
    """A sentence about the first initialiser of the graph that is no weight to compute with.

    An infinity that only fills is none: in a tensor of zeros and infinities, such as a mask that
    is added, which no convolution, product or norm reads. Constants in nodes are no weights.
    """
    arrays = require("onnx", "export").numpy_helper
    weights = {
        name
        for node in model.graph.node
        for name in node.input[_WEIGHT_INPUTS.get(node.op_type, len(node.input)) :]
    }
    for tensor in model.graph.initializer:
        values = np.asarray(arrays.to_array(tensor))
        if not _is_float(values) or np.isfinite(values).all():
            continue
        fills = not np.isnan(values).any() and not (values[np.isfinite(values)] != 0).any()
        if not fills or tensor.name in weights:
            return not_finite_sentence(tensor.name, values)
    return ""


def not_finite_sentence(name: str, values: np.ndarray) -> str:
    """The sentence about a tensor that holds numbers that are not finite."""
    what = "NaN" if np.isnan(values).any() else "infinity"
    return (
        f"the weight {name} holds {what}. The training diverged, or the file is damaged: take an "
        "older one."
    )


def _is_float(values: np.ndarray) -> bool:
    """True for floating-point numbers, those of 16 and 8 bits that numpy lacks included."""
    return values.dtype.kind == "f" or values.dtype.name.startswith(("bfloat16", "float8"))


def _tensors_of_model(model: Any) -> Iterator[tuple[str, Any]]:
    yield from _tensors_of_graph("", model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_node(f"{function.domain}::{function.name}/", node)


def _tensors_of_graph(place: str, graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield f"{place}{tensor.name}", tensor
    for tensor in graph.sparse_initializer:
        yield from _sparse(f"{place}{tensor.values.name}", tensor)
    for node in graph.node:
        yield from _tensors_of_node(place, node)


def _tensors_of_node(place: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Tensors in the attributes of a node, and the plain numbers and texts of a Constant."""
    for attribute in node.attribute:
        here = f"{place}{','.join(node.output)}.{attribute.name}"
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            yield here, tensor
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in [*sparse, *attribute.sparse_tensors]:
            yield from _sparse(here, tensor)
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from _tensors_of_graph(f"{here}/", graph)
        if node.op_type == "Constant" and attribute.name.startswith("value_"):
            yield here, _plain(attribute)


def _sparse(place: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    yield f"{place}.values", tensor.values
    yield f"{place}.indices", tensor.indices
    yield f"{place}.dims", np.array(tensor.dims, np.int64)


def _plain(attribute: Any) -> Any:
    """The value of an attribute such as value_floats; a text is its bytes."""
    values: dict[str, Any] = {
        "value_float": np.array(attribute.f, np.float32),
        "value_floats": np.array(attribute.floats, np.float32),
        "value_int": np.array(attribute.i, np.int64),
        "value_ints": np.array(attribute.ints, np.int64),
        "value_string": np.array([attribute.s], object),
        "value_strings": np.array(list(attribute.strings), object),
    }
    return values.get(attribute.name, np.zeros(0))


def _part(onnx: Any, name: str, tensor: Any) -> Part:
    """Name, type, shape and bytes of a TensorProto or of an array."""
    if isinstance(tensor, np.ndarray):
        return name, str(tensor.dtype), tensor.shape, _bytes(tensor)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    values = np.asarray(onnx.numpy_helper.to_array(tensor))
    return name, kind, tuple(tensor.dims), _bytes(values)


def _bytes(values: np.ndarray) -> Any:
    """The bytes of an array, without a copy where it lies in one piece."""
    if values.dtype.kind in "OSU":
        texts = [t.encode() if isinstance(t, str) else bytes(t) for t in values.reshape(-1)]
        return b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
