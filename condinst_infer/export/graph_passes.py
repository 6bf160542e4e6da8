"""Making a traced graph readable and lean: names, merged predictors, the contract's shapes."""

import ast
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from condinst_infer.config.model import SEMANTIC_STRIDE
from condinst_infer.contract.metadata import Metadata

_BOX, _CENTRE = "fcos/box_regression/Conv", "fcos/centreness/Conv"
_BOTH = "fcos/box_regression+centreness"


def name_by_scope(proto: onnx.ModelProto) -> None:
    """Name nodes and their outputs after the module they came from, and drop the tracer's notes.

    `backbone/res3/0/conv1/Conv` rather than `node_conv2d_17`; the notes name local files. Outputs
    too, because runtimes name what they fuse by its output.
    """
    seen: Counter[str] = Counter()
    renamed = {value.name: value.name for value in proto.graph.output}
    for node in proto.graph.node:
        notes = {prop.key: prop.value for prop in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        parts = [part for part in module.split(".") if part and part != "model" and part[0] != "_"]
        name = "/".join([*parts, node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for i, output in enumerate(node.output):
            renamed.setdefault(output, f"{node.name}:{i}" if i else node.name)
        node.input[:] = [renamed.get(name, name) for name in node.input]  # nodes are in order
        node.output[:] = [renamed[name] for name in node.output]
        del node.metadata_props[:]
        node.doc_string = ""
    for value in proto.graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""


def merge_predictors(proto: onnx.ModelProto) -> None:
    """Compute regression and centreness of a level in one convolution, and split what it puts out.

    They read the same map, and runtimes round 4 and 1 channels up to a block of 8 or 16 each. What
    comes out keeps its names. Without a box branch there is nothing to merge.
    """
    boxes = [node for node in proto.graph.node if node.name.startswith(_BOX)]
    if not boxes:
        return
    centres = {n.input[0]: n for n in proto.graph.node if n.name.startswith(_CENTRE)}
    shared = _join(proto.graph, [boxes[0], centres[boxes[0].input[0]]])
    nodes = []
    for node in proto.graph.node:
        if node.name.startswith(_BOX):
            name = node.name.replace(_BOX, f"{_BOTH}/Conv")
            merged = helper.make_node("Conv", [node.input[0], *shared[:2]], [name], name=name)
            merged.attribute.extend(node.attribute)
            outputs = [node.output[0], centres[node.input[0]].output[0]]
            split = helper.make_node("Split", [name, shared[2]], outputs, f"{name}/Split", axis=1)
            nodes += [merged, split]
        elif not node.name.startswith(_CENTRE):
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def replace_clips(graph: onnx.GraphProto) -> None:
    """Replace each Clip of one bound by Max or Min, which more runtimes have for whole numbers."""
    for node in graph.node:
        bounds = [name for name in node.input[1:] if name]
        if node.op_type == "Clip" and len(bounds) == 1:
            node.op_type = "Max" if node.input[1] else "Min"
            node.input[:] = [node.input[0], *bounds]


def _join(graph: onnx.GraphProto, convs: Sequence[onnx.NodeProto]) -> list[str]:
    """Names of new tensors: weights and biases of `convs` together, and channels of each."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    old = {name for conv in convs for name in conv.input[1:]}
    weights = [numpy_helper.to_array(tensors[conv.input[1]]) for conv in convs]
    biases = [np.zeros(len(weight), weight.dtype) for weight in weights]  # the tracer drops zeros
    for i, conv in enumerate(convs):
        if len(conv.input) > 2:
            biases[i] = numpy_helper.to_array(tensors[conv.input[2]])
    made = {
        f"{_BOTH}/weight": np.concatenate(weights),
        f"{_BOTH}/bias": np.concatenate(biases),
        f"{_BOTH}/channels": np.array([len(weight) for weight in weights]),
    }
    kept = [tensor for tensor in graph.initializer if tensor.name not in old]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    return list(made)


def set_contract_shapes(proto: onnx.ModelProto, metadata: Metadata) -> None:
    """Give inputs and outputs the dimension names of the contract where they are dynamic."""
    stride = metadata.config.mask.mask_stride
    feature_stride = metadata.config.mask_feature_stride
    names = {
        "images": ("N", "H", "W", None),
        "image_sizes": ("N", None),
        "masks": ("N", None, f"H/{stride}", f"W/{stride}"),
        "mask_features": ("N", None, f"H/{feature_stride}", f"W/{feature_stride}"),
        "params_map": ("N", None, "A"),
        "semantic": ("N", None, f"H/{SEMANTIC_STRIDE}", f"W/{SEMANTIC_STRIDE}"),
    }
    for value in [*proto.graph.input, *proto.graph.output]:
        dims = value.type.tensor_type.shape.dim
        wanted = names.get(value.name, ("N", *[None] * (len(dims) - 1)))
        for dim, name in zip(dims, wanted, strict=True):
            if name is not None and not dim.HasField("dim_value"):
                dim.dim_param = name
