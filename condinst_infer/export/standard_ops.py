"""A full graph in standard operators alone, for runtimes that know neither our nodes nor functions.

The function bodies take the place of the nodes. Where batch and size are fixed, they are bodies
without Loop and If, and every shape in the file is a number.
"""

from dataclasses import replace

import numpy as np
import onnx
import onnx.inliner

from condinst_infer.contract.metadata import Metadata, metadata_from_props, model_props
from condinst_infer.contract.tensors import NODE_INPUTS, NODE_OUTPUTS, TAIL, output_shapes
from condinst_infer.errors import ConfigError, require
from condinst_infer.export.function_bodies import functions
from condinst_infer.export.graph_passes import replace_clips
from condinst_infer.ops.onnx_nodes import DOMAIN


def with_standard_ops(
    proto: onnx.ModelProto, *, size: tuple[int, int] | None = None, batch: int | None = None
) -> onnx.ModelProto:
    """The exported graph `proto` in standard operators, with metadata that says so.

    Its metadata but that of the contract, such as the self-test, is that of `proto`.

    Args:
        size: (height, width) to fix where `proto` takes any; None leaves it.
        batch: images per run to fix where `proto` takes any; None leaves it.

    Raises:
        ConfigError: `proto` is of another size or batch already, or what could be unrolled is not
            in functions any more.
    """
    props = model_props(proto)
    metadata = _fix(metadata_from_props(props, "the graph"), size, batch)
    is_static = metadata.size is not None and metadata.batch is not None
    if is_static and {"Loop", "If"} & {node.op_type for node in proto.graph.node}:
        raise ConfigError(
            "the functions of this file were expanded already, so its loops can't be unrolled. "
            "Export the file or the checkpoint it was made of: "
            "condinst export MODEL.safetensors -o MODEL.onnx --standard-ops --size HxW --batch N"
        )
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    replace_clips(model.graph)  # of files of earlier versions
    _name_stages(model.graph)
    if model.functions:  # those of earlier versions have other bodies
        del model.functions[:]
        static_batch = metadata.batch if is_static else None
        model.functions.extend(functions(metadata.config, static_batch=static_batch))
    _set_shapes(model.graph, metadata)
    model = onnx.inliner.inline_local_functions(model)
    if is_static:
        model = _fold(model)
    kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    _rename(model.graph, {name: f"{TAIL}{name}" for name in _inner_names(model.graph)})
    onnx.helper.set_model_props(model, props | metadata.to_props())
    onnx.checker.check_model(model, full_check=True)
    return model


def has_own_nodes(proto: onnx.ModelProto) -> bool:
    """True if there are nodes of our domain, which have a function body in the same file."""
    return any(node.domain == DOMAIN for node in proto.graph.node)


def _fix(metadata: Metadata, size: tuple[int, int] | None, batch: int | None) -> Metadata:
    """`metadata` of standard operators, with this size and batch where they are given."""
    wanted = {"size": size or metadata.size, "batch": batch or metadata.batch}
    for name, value in wanted.items():
        fixed = getattr(metadata, name)
        if fixed not in (None, value):
            fixed, value = ("x".join(map(str, np.atleast_1d(each))) for each in (fixed, value))
            raise ConfigError(
                f"the file has a fixed {name} of {fixed}, not {value}. "
                "Export the checkpoint it was made of: "
                "condinst export MODEL.safetensors -o MODEL.onnx --standard-ops"
            )
    return replace(metadata, standard_ops=True, **wanted)


def _name_stages(graph: onnx.GraphProto) -> None:
    """Name what goes into and comes out of our nodes after its stage, for those who look inside."""
    names: dict[str, str] = {}
    for node in graph.node:
        if node.domain == DOMAIN:
            inputs = zip(node.input, NODE_INPUTS[node.op_type], strict=True)
            outputs = zip(node.output, NODE_OUTPUTS.get(node.op_type, ()), strict=False)
            names |= {name: f"{TAIL}{stage}" for name, stage in [*inputs, *outputs]}
    outputs = {value.name for value in graph.output}
    _rename(graph, {name: stage for name, stage in names.items() if name not in outputs})


def _inner_names(graph: onnx.GraphProto) -> list[str]:
    """Tensors after the network's modules, except outputs.

    OpenVINO calls an output by the first of its names in the alphabet, and gives it those of inner
    tensors where it takes a node away.
    """
    outputs = {value.name for value in graph.output}
    return [
        name
        for node in graph.node
        for name in node.output
        if name and "/" not in name and name not in outputs
    ]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give tensors other names, also where the bodies of Loop and If read them."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _set_shapes(graph: onnx.GraphProto, metadata: Metadata) -> None:
    """Put the fixed sizes in place of the names of dimensions; the rest is inferred from them."""
    height, width = metadata.size or (None, None)
    batch = metadata.batch
    for value, shape in zip(graph.input, ((batch, height, width, 3), (batch, 2)), strict=True):
        for dim, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if side is not None:
                dim.dim_value = side
    if metadata.size is None or batch is None:
        return
    shapes = output_shapes(metadata, batch, metadata.size)
    for value in graph.output:
        for dim, side in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = side
    del graph.value_info[:]  # has the names of dimensions


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute what depends on nothing but the sizes of the inputs."""
    require("onnxscript", "export")
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    for _ in range(2):  # some shapes are known only after others are numbers
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = onnx_ir.from_proto(model)
        optimizer.fold_constants(graph)
        for each in (
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
        ):
            each(graph)
        model = onnx_ir.to_proto(graph)
    del model.graph.value_info[:]  # of tensors that are gone
    return onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
