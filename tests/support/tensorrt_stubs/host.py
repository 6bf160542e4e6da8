"""Plays TensorRT's parser and builder for single plugin nodes; a script, run by its package.

It reads {"libraries": paths, "nodes": [node]} and prints {"creators": text, "registrations":
count, "nodes": [answer]}. A node has `name`, `attributes` (name: list), `inputs` ([type,
dimensions]; a dimension is a number or the letter of a dynamic one) and `sizes` ([{letter:
number}]), for which expressions are evaluated.
"""

import ctypes
import importlib
import json
import operator
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np

REQUEST = json.load(sys.stdin)
# the linker finds them loaded, by their soname
STUBS = [ctypes.CDLL(path) for path in REQUEST["libraries"]]
trt: Any = importlib.import_module("tensorrt")

Sizes = Mapping[str, int]
OPERATIONS = {
    trt.DimensionOperation.SUM: operator.add,
    trt.DimensionOperation.SUB: operator.sub,
    trt.DimensionOperation.PROD: operator.mul,
    trt.DimensionOperation.FLOOR_DIV: operator.floordiv,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    trt.DimensionOperation.MAX: max,
    trt.DimensionOperation.MIN: min,
}


class Expression(trt.IDimensionExpr):
    """A dimension that is known when `sizes` are."""

    value: Callable[[Sizes], int]
    constant: bool

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value({})


def expression(value: Callable[[Sizes], int], constant: bool) -> Expression:
    made = Expression.__new__(Expression)  # the bindings let nobody construct one
    made.value, made.constant = value, constant
    return made


def dimension(size: int | str) -> Expression:
    if isinstance(size, int):
        return expression(lambda _: size, True)
    return expression(lambda sizes: sizes[size], False)


class Builder:
    """IExprBuilder, valid in its `with` block, as TensorRT's is during one call."""

    alive = False

    def __enter__(self) -> "Builder":
        self.alive = True
        return self

    def __exit__(self, *_: object) -> None:
        self.alive = False

    def constant(self, value: int) -> Expression:
        assert self.alive and -(2**31) <= value < 2**31
        return dimension(value)

    def operation(self, op: Any, a: Expression, b: Expression) -> Expression:
        assert self.alive
        apply = OPERATIONS[op]
        return expression(lambda s: apply(a.value(s), b.value(s)), a.constant and b.constant)


class Symbol(trt.ISymExpr):
    """The bindings' own can be written, and only TensorRT can read it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__[f"set_{name}"] = value

    def value(self, sizes: Sizes) -> int:
        assert self.__dict__["set_dtype"] == trt.PluginArgDataType.INT32
        return self.__dict__["set_expr"].value(sizes)


trt.ISymExpr = Symbol


class Scalars(dict[int, Symbol]):
    """ISymExprs: takes values by index."""

    nbSymExprs = 0


def creation(node: Mapping[str, Any]) -> Any:
    """The plugin, made from the attributes as onnx-tensorrt makes it: in the creator's order."""
    creator = trt.get_plugin_registry().get_creator(node["name"], "1", "condinst")
    fields, types = [], {int: np.int32, float: np.float32}
    for field in creator.field_names:
        values = node["attributes"][field.name]
        array = np.array(values, types[type(values[0])])
        kind = trt.PluginFieldType.INT32 if array.dtype == np.int32 else trt.PluginFieldType.FLOAT32
        fields.append(trt.PluginField(field.name, array, kind))
    return creator.create_plugin(
        node["name"],
        "condinst",
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )


def description(dims: list[int], kind: Any) -> Any:
    made, plain = trt.DynamicPluginTensorDesc(), trt.PluginTensorDesc()
    plain.dims, plain.type, plain.format = dims, kind, trt.TensorFormat.LINEAR
    made.desc = plain
    return made


def answer(node: Mapping[str, Any]) -> dict[str, Any]:
    """Types and shapes of the outputs, combinations of types, and the launch for each of these."""
    plugin, sizes = creation(node), node["sizes"]
    inputs = [[dimension(size) for size in dims] for _, dims in node["inputs"]]
    types = [getattr(trt.DataType, kind) for kind, _ in node["inputs"]]
    ranks = [len(dims) for dims in inputs]
    plugin.get_output_data_types(types, ranks)
    with Builder() as builder:
        plugin.get_output_shapes(inputs, [], builder)
        shapes = [
            [[dim._expr.value(at) for dim in tensor.shape_expr] for at in sizes]
            for tensor in plugin.output_descs
        ]
    in_out = [
        description([d if isinstance(d, int) else -1 for d in dims], kind)
        for (_, dims), kind in zip(node["inputs"], types, strict=True)
    ]
    # 10.9 leaves the builder where it is when it is gone; so that every version's test sees it:
    importlib.import_module("tensorrt.plugin").SymInt32.__base__._exprBuilder = builder
    made = plugin.get_output_data_types(types, ranks)
    in_out += [description([-1] * len(s[0]), t) for s, t in zip(shapes, made, strict=True)]
    supported = plugin.get_supported_format_combinations(in_out, len(inputs))
    supported = [supported[i : i + len(in_out)] for i in range(0, len(supported), len(in_out))]
    return {
        "types": [kind.name for kind in made],
        "shapes": shapes,
        "launches": [launch(plugin, inputs, in_out, choice, sizes) for choice in supported],
    }


def launch(plugin: Any, inputs: Any, in_out: Any, choice: Any, sizes: list[Sizes]) -> Any:
    """What the builder asks for when it times the plugin with these types."""
    for tensor, chosen in zip(in_out, choice, strict=True):
        tensor.desc = chosen
    count = len(inputs)
    plugin.configure_plugin(in_out[:count], in_out[count:])
    assert plugin.get_valid_tactics() == []  # only the default one, 0
    plugin.set_tactic(0)
    geometry, scalars = SimpleNamespace(), Scalars()
    with Builder() as builder:
        plugin.get_launch_params(inputs, in_out, count, geometry, scalars, builder)
    kernel, image = plugin.get_kernel(choice[:count], choice[count:])
    assert len(scalars) == scalars.nbSymExprs
    return {
        "types": [desc.type.name for desc in choice],
        "formats": [desc.format.name for desc in choice],
        "kernel": kernel,
        "ptx": image.decode(),
        "geometry": [{name: of.value(at) for name, of in vars(geometry).items()} for at in sizes],
        "scalars": [[scalars[i].value(at) for i in range(len(scalars))] for at in sizes],
    }


def register_from_threads(count: int, register: Callable[[], None]) -> None:
    """All at once, and swapped as often as Python can."""
    usual, start = sys.getswitchinterval(), Barrier(count)
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(lambda: (start.wait(), register())) for _ in range(count)]:
            done.result()
    sys.setswitchinterval(usual)


def main() -> None:
    from condinst_infer.errors import CondInstError
    from condinst_infer.trt import plugin

    register_from_threads(8, plugin.register)
    nvinfer = next(stub for stub in STUBS if hasattr(stub, "stub_creators"))
    nvinfer.stub_creators.restype = ctypes.c_char_p
    answers = []
    for node in REQUEST["nodes"]:
        try:
            answers.append(answer(node))
        except CondInstError as error:
            answers.append({"error": str(error)})
    told = {
        "creators": nvinfer.stub_creators().decode(),
        "registrations": nvinfer.stub_registrations(),
        "nodes": answers,
    }
    print(json.dumps(told))


main()
