"""The SHA-256 of the weights of an ONNX file: every constant counts, how it is stored does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from condinst_infer.contract.weights_sha256 import (
    WEIGHTS_KEY,
    add_weights_sha256,
    onnx_not_finite,
    onnx_weights_sha256,
)
from condinst_infer.errors import CheckpointError

Edit = Callable[[onnx.ModelProto], object]
WEIGHT = np.arange(1, 13, dtype=np.float32).reshape(3, 4)


def constant(name: str, **value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], **value)


def model() -> onnx.ModelProto:
    """A graph with constants in every place that ONNX has, which no runtime has to run."""
    branch = helper.make_graph(
        [constant("inner", value_float=2.0)], "b", [], [], [numpy_helper.from_array(WEIGHT, "w2")]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        constant("tensor", value=numpy_helper.from_array(WEIGHT)),
        constant("numbers", value_ints=[1, 2, 3]),
        constant("text", value_strings=[b"a", b"bc"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
    ]
    function = helper.make_function(
        "own", "F", [], ["k"], [constant("k", value_floats=[1.0, 2.0])],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, functions=[function])


def typed(tensor: onnx.TensorProto) -> None:
    """Store the numbers of a tensor as a list of floats."""
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor(tensor.name, 1, values.shape, values.ravel().tolist()))


def test_storage_does_not_change_it(tmp_path: Path) -> None:
    expected = onnx_weights_sha256(model())
    other = model()
    typed(other.graph.initializer[0])
    typed(other.graph.node[1].attribute[0].t)
    assert onnx_weights_sha256(other) == expected
    onnx.save(
        model(), tmp_path / "a.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    assert (tmp_path / "w.bin").stat().st_size > 0
    assert onnx_weights_sha256(onnx.load(tmp_path / "a.onnx")) == expected


def test_metadata_order_and_notes_do_not_change_it() -> None:
    other = model()
    add_weights_sha256(other)
    other.producer_name, other.graph.doc_string = "tool", "notes"
    nodes = list(reversed(other.graph.node))
    del other.graph.node[:]
    other.graph.node.extend(nodes)
    assert onnx_weights_sha256(other) == onnx_weights_sha256(model())
    add_weights_sha256(other)  # in place of the older one
    assert [prop.key for prop in other.metadata_props] == [WEIGHTS_KEY]


def changed_number(tensor: onnx.TensorProto) -> None:
    data = bytearray(tensor.raw_data)
    data[5] ^= 1
    tensor.raw_data = bytes(data)


EDITS: dict[str, Edit] = {
    "initialiser": lambda m: changed_number(m.graph.initializer[0]),
    "shape": lambda m: m.graph.initializer[0].dims.__setitem__(slice(None), [4, 3]),
    "type": lambda m: setattr(m.graph.initializer[0], "data_type", onnx.TensorProto.INT32),
    "name": lambda m: setattr(m.graph.initializer[0], "name", "v"),
    "constant": lambda m: changed_number(m.graph.node[1].attribute[0].t),
    "whole numbers": lambda m: m.graph.node[2].attribute[0].ints.__setitem__(0, 5),
    "texts": lambda m: m.graph.node[3].attribute[0].strings.__setitem__(slice(None), [b"ab", b"c"]),
    "branch": lambda m: changed_number(m.graph.node[4].attribute[0].g.initializer[0]),
    "node of a branch": lambda m: setattr(
        m.graph.node[4].attribute[1].g.node[0].attribute[0], "f", 3.0
    ),
    "function": lambda m: m.functions[0].node[0].attribute[0].floats.__setitem__(1, 2.5),
    "one less": lambda m: m.graph.initializer.pop(),
}


@pytest.mark.parametrize("kind", EDITS)
def test_every_constant_is_in_it(kind: str) -> None:
    other = model()
    EDITS[kind](other)
    assert onnx_weights_sha256(other) != onnx_weights_sha256(model())


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float, kind: type) -> None:
    other, values = model(), WEIGHT.astype(kind)
    values[1, 2] = value
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    what = "NaN" if np.isnan(value) else "infinity"
    assert onnx_not_finite(other).startswith(f"the weight w holds {what}.")
    with pytest.raises(CheckpointError, match="the weight w holds"):
        add_weights_sha256(other)


@pytest.mark.parametrize(
    ("node", "values", "refused"),
    [
        ("Where", [-np.inf], False),
        ("Add", [0.0, -np.inf], False),  # a mask
        ("Add", [1.0, -np.inf], True),
        ("Where", [np.nan], True),
        ("Conv", [np.inf], True),  # the only bias
    ],
)
def test_infinity_that_only_fills_is_no_weight(
    node: str, values: list[float], refused: bool
) -> None:
    tensor = numpy_helper.from_array(np.array(values, np.float32), "fill")
    nodes = [helper.make_node(node, ["x", "fill"], ["y"])]
    other = helper.make_model(helper.make_graph(nodes, "g", [], [], [tensor]))
    assert bool(onnx_not_finite(other)) == refused


def test_constants_in_nodes_are_no_weights() -> None:
    other = model()
    other.graph.node[1].attribute[0].t.raw_data = np.full((3, 4), np.nan, np.float32).tobytes()
    assert onnx_not_finite(other) == ""
