"""Making a traced graph readable: node names, and the contract's shapes on inputs and outputs."""

import ast
from collections import Counter

import onnx

from condinst_infer.metadata import Metadata


def named_by_scope(proto: onnx.ModelProto) -> None:
    """Name every node after the module it came from, and drop the tracer's notes.

    `backbone/res3/0/conv1/Conv` rather than `node_conv2d_17`; the notes name local files.
    """
    seen: Counter[str] = Counter()
    for node in proto.graph.node:
        notes = {prop.key: prop.value for prop in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = scopes[-2] if len(scopes) > 1 else ""
        parts = [part for part in module.split(".") if part and part != "model" and part[0] != "_"]
        name = "/".join([*parts, node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""


def with_contract_shapes(proto: onnx.ModelProto, metadata: Metadata) -> None:
    """Give inputs and outputs the dimension names of the contract where they are dynamic."""
    stride = metadata.config.mask.mask_stride
    feature_stride = metadata.config.mask_feature_stride
    names = {
        "images": ("N", "H", "W", None),
        "image_sizes": ("N", None),
        "masks": ("N", None, f"H/{stride}", f"W/{stride}"),
        "mask_features": ("N", None, f"H/{feature_stride}", f"W/{feature_stride}"),
        "params_map": ("N", None, "A"),
    }
    for value in [*proto.graph.input, *proto.graph.output]:
        dims = value.type.tensor_type.shape.dim
        wanted = names.get(value.name, ("N", *[None] * (len(dims) - 1)))
        for dim, name in zip(dims, wanted, strict=True):
            if name is not None and not dim.HasField("dim_value"):
                dim.dim_param = name
