"""int8 in an exported float32 file: QuantizeLinear and DequantizeLinear around its convolutions.

Weights are int8, symmetric, with a scale per output channel. Activations have one scale per tensor:

* "cpu": uint8 with a zero point, on both sides of convolutions, sums, ReLU, pooling and nearest
  upsampling, so that ONNX Runtime and OpenVINO stay in 8 bits from one convolution to the next.
  (int8 activations gain nothing in ONNX Runtime.)
* "tensorrt": int8 with zero point 0, on what goes into a convolution and on the shortcut of a sum,
  where TensorRT's guide to explicit quantisation wants them; biases and outputs stay float32.

What makes scores, boxes, parameters of mask heads and mask features is never quantised, nor is
group norm or anything after it.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from condinst_infer.contract.metadata import metadata_from_props, model_props
from condinst_infer.contract.weights_sha256 import add_weights_sha256
from condinst_infer.errors import ConfigError, require

TARGETS = ("cpu", "tensorrt")
_PARTS = ("backbone", "neck", "fcos", "mask_branch")
_FLOAT = ("fcos/class_logits", "fcos/box_regression", "fcos/centreness", "fcos/controller")
_FLOAT += ("mask_branch/output",)
_LAYERS = ("Conv", "Add")  # where precision is lost; the others pass on what they get
_TYPES = {"cpu": ("Conv", "Add", "Relu", "MaxPool", "Resize"), "tensorrt": _LAYERS}


class Quantizer:
    """Writes int8 variants of one exported float32 file.

        quantizer = Quantizer("model.onnx", feeds, target="cpu")
        quantizer.write("int8.onnx")

    Args:
        path: a float32 file written by `export_onnx`.
        feeds: the file's inputs by name, for each of the images that set the ranges. The ranges
            reach from the least to the largest value seen.
        target: "cpu" (ONNX Runtime, OpenVINO) or "tensorrt".

    Raises:
        ConfigError: another target, or a file that is not float32.
    """

    def __init__(
        self, path: str | Path, feeds: Iterable[Mapping[str, np.ndarray]], *, target: str
    ) -> None:
        if target not in TARGETS:
            raise ConfigError(f"int8 is for {target!r}; it must be one of {', '.join(TARGETS)}.")
        require("onnxruntime", "export")
        self.target = target
        self._graph = onnx.load(str(path))
        props = model_props(self._graph)
        self._metadata = metadata_from_props(props, path)
        if self._metadata.precision != "fp32":
            raise ConfigError(f"{path} is {self._metadata.precision}; int8 is made of fp32.")
        fold_batch_norms(self._graph)
        _redirect_shape_reads(self._graph)
        self._ranges = _ranges(self._graph, feeds)
        self._graph = onnx.shape_inference.infer_shapes(self._graph)
        nodes = [node for node in self._graph.graph.node if self._quantizable(node)]
        #: the nodes that can lose precision: convolutions and sums, in the order they run
        self.layers = tuple(node.name for node in nodes if node.op_type in _LAYERS)
        self._others = [node.name for node in nodes if node.op_type not in _LAYERS]

    def write(self, path: str | Path, layers: Sequence[str] | None = None) -> None:
        """Write the file to `path` with only `layers` in int8; None takes all there are."""
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.quant_utils import add_infer_metadata

        proto = onnx.ModelProto()
        proto.CopyFrom(self._graph)
        add_infer_metadata(proto)  # it has its shapes, and need not go through a file for them
        names = [*(self.layers if layers is None else layers), *self._others]
        if self.target == "cpu":
            activations, options = QuantType.QUInt8, {}
        else:
            activations = QuantType.QInt8
            options = {
                "ActivationSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": list(_LAYERS),
            }
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=activations,
            tensors_range=self._ranges,
            nodes_to_quantize=names or [""],  # no names would mean all
            nodes_to_exclude=[],
            op_types_to_quantize=list(_TYPES[self.target]),
            extra_options=options,
        )
        proto = quantizer.quantize_model()
        if self.target == "tensorrt":
            _free_main_branches(proto)
        _in_order(proto, [node.name for node in self._graph.graph.node])
        self._save(proto, path)

    def _quantizable(self, node: onnx.NodeProto) -> bool:
        """True if `node` may be in int8: part of the network, of float inputs that were seen."""
        if node.op_type not in _TYPES[self.target] or node.name.split("/")[0] not in _PARTS:
            return False
        if node.name.startswith(_FLOAT) or "/offset/" in node.name:  # offsets are coordinates
            return False
        weights = {tensor.name for tensor in self._graph.graph.initializer}
        if node.op_type == "Conv" and node.input[1] not in weights:
            return False
        read = node.input if node.op_type == "Add" else node.input[:1]
        return all(name in self._ranges.data for name in read)

    def _save(self, proto: onnx.ModelProto, path: str | Path) -> None:
        """With the metadata of int8, and what the float32 file says of itself otherwise."""
        metadata = replace(self._metadata, precision="int8", int8_for=self.target)
        del proto.metadata_props[:]
        for key, value in metadata.to_props().items():
            proto.metadata_props.add(key=key, value=value)
        proto.producer_name = self._graph.producer_name
        proto.producer_version = self._graph.producer_version
        proto.ir_version = self._graph.ir_version
        add_weights_sha256(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, str(path))


def fold_batch_norms(proto: onnx.ModelProto) -> None:
    """Fold each batch norm of the graph into the convolution before it.

    Towers have one batch norm per level behind one shared convolution: each level gets its own
    weights, which would make a float32 file larger, so there they stay.
    """
    graph = proto.graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    norms = [node for node in graph.node if node.op_type == "BatchNormalization"]
    renamed = {}
    for norm in norms:
        conv = maker[norm.input[0]]
        gain, shift, mean, variance, weight, *bias = (
            numpy_helper.to_array(arrays[name]).astype(np.float64)
            for name in (*norm.input[1:5], *conv.input[1:])
        )
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        gain = gain / np.sqrt(variance + epsilon)
        shift = shift + (sum(bias) - mean) * gain  # a convolution whose bias is 0 has none
        del conv.input[1:]
        for kind, value in (("weight", weight * gain[:, None, None, None]), ("bias", shift)):
            conv.input.append(f"{norm.name}/{kind}")
            tensor = numpy_helper.from_array(value.astype(np.float32), conv.input[-1])
            graph.initializer.append(tensor)
        renamed[conv.output[0]] = norm.output[0]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    for node in graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = renamed.get(name, name)
    _drop_unused(graph)


def _redirect_shape_reads(proto: onnx.ModelProto) -> None:
    """Make every Shape node read a float32 tensor of the same height and width.

    Reading the size from a convolution's output blocks the fusion of Conv and ReLU, and OpenVINO
    2026.4 then computes the int8 convolution wrongly. The graph is sorted again afterwards.
    """
    relu_of = {node.input[0]: node.output[0] for node in proto.graph.node if node.op_type == "Relu"}
    predictor_of = {
        node.input[0]: node.output[0]
        for node in reversed(proto.graph.node)
        if node.op_type == "Conv" and node.name.startswith(_FLOAT)
    }
    for node in proto.graph.node:
        if node.op_type == "Shape":
            behind_relu = relu_of.get(node.input[0], node.input[0])
            node.input[0] = predictor_of.get(behind_relu, behind_relu)
    _sort_topologically(proto.graph)


def _sort_topologically(graph: onnx.GraphProto) -> None:
    """Put each node behind those it reads; nodes that need no move keep their order."""
    ready = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    waiting, ordered = list(graph.node), []
    while waiting:
        blocked = []
        for node in waiting:
            if ready.issuperset(node.input):
                ready.update(node.output)
                ordered.append(node)
            else:
                blocked.append(node)
        waiting = blocked
    del graph.node[:]
    graph.node.extend(ordered)


def _ranges(proto: onnx.ModelProto, feeds: Iterable[Mapping[str, np.ndarray]]) -> Any:
    """Least and largest value of every tensor at a quantisable node over `feeds`.

    Percentiles and entropy were tried on the nuclei model: they need every value in memory, and
    cutting off the rare large ones costs more than it gains.
    """
    from onnxruntime.quantization import MinMaxCalibrater

    types = list(_TYPES["cpu"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(_network(proto, types), str(path))
        calibrater = MinMaxCalibrater(path, types, str(path.with_name("reduced.onnx")))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(_Reader(feeds))  # pyright: ignore[reportArgumentType]: duck-typed
        return calibrater.compute_data()


class _Reader:
    """Data reader for the calibrater."""

    def __init__(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next((dict(feed) for feed in self._feeds), None)


def _network(proto: onnx.ModelProto, types: Sequence[str]) -> onnx.ModelProto:
    """A copy without what follows the last node of `types` in the network: NMS and mask heads."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    needed: set[str] = set()
    kept = []
    for node in reversed(copy.graph.node):
        if needed & set(node.output) or (
            node.op_type in types and node.name.split("/")[0] in _PARTS
        ):
            needed |= set(node.input)
            kept.append(node)
    kept.reverse()
    del copy.graph.node[:], copy.graph.output[:], copy.functions[:]
    copy.graph.node.extend(kept)
    _drop_unused(copy.graph)
    return copy


def _free_main_branches(proto: onnx.ModelProto) -> None:
    """Take the pair off what a convolution hands to a sum: TensorRT adds inside that convolution.

    The other summand, the shortcut, keeps its pair.
    """
    maker = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        pair = maker.get(node.input[0]) if node.op_type == "Add" else None
        if pair is not None and pair.op_type == "DequantizeLinear":
            source = maker[pair.input[0]].input[0]
            if maker[source].op_type == "Conv":
                node.input[0] = source


def _in_order(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Put the nodes called `names` in this order again, and each new one before its first reader.

    The order is part of the contract: predictors stand in the order of their levels. New nodes
    that nobody reads are dropped.
    """
    named = {node.name: node for node in proto.graph.node}
    maker = {output: node for node in proto.graph.node for output in node.output}
    done: dict[str, onnx.NodeProto] = {}

    def put(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in maker and maker[name].name not in done:
                put(maker[name])
        done[node.name] = node

    for name in names:
        if name in named:  # a ReLU may have become part of its convolution's zero point
            put(named[name])
    ordered = list(done.values())
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)
    values = [value for value in proto.graph.value_info if value.name in maker]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(values)
    _drop_unused(proto.graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that no node reads."""
    used = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)
