"""Models of one custom-domain node with its function body, and what runs them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.export.function_bodies import OPSET, functions
from condinst_infer.ops.onnx_nodes import DOMAIN
from condinst_infer.runtimes.openvino import core

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
NMS_INPUTS = {"boxes": (FLOAT, 3), "scores": (FLOAT, 2), "labels": (INT, 2)}
NMS_OUTPUTS = {"keep": (INT, 2), "count": (INT, 1)}


def one_node_model(
    name: str,
    config: CondInstConfig,
    inputs: Mapping[str, tuple[int, int]],
    outputs: Mapping[str, tuple[int, int]],
    static_batch: int | None = None,
) -> onnx.ModelProto:
    """A checked model whose only node is `name`, with the body for `config`; (type, rank) each.

    With `static_batch` it is the body without a loop, for so many images.
    """

    def infos(specs: Mapping[str, tuple[int, int]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(key, dtype, [f"{key}_{i}" for i in range(rank)])
            for key, (dtype, rank) in specs.items()
        ]

    bodies = functions(config, static_batch=static_batch)
    (body,) = (body for body in bodies if body.name == name)
    # the body reads no attribute, but a node without the declared ones is not whole
    unread: dict[str, Any] = dict.fromkeys(body.attribute, [0])
    node = helper.make_node(name, list(inputs), list(outputs), domain=DOMAIN, **unread)
    model = helper.make_model(
        helper.make_graph([node], name, infos(inputs), infos(outputs)),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[body],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def nms_model(keep: int, static_batch: int | None = None) -> onnx.ModelProto:
    config = override(CondInstConfig(), max_detections=keep)
    return one_node_model("ClassNMS", config, NMS_INPUTS, NMS_OUTPUTS, static_batch)


def mask_head_model(
    config: CondInstConfig, dtype: int = FLOAT, static_batch: int | None = None
) -> onnx.ModelProto:
    inputs = {"features": (dtype, 4), "params": (dtype, 3), "centres": (FLOAT, 3)}
    inputs |= {"sizes": (FLOAT, 2), "count": (INT, 1)}
    outputs = {"masks": (dtype, 4)}
    return one_node_model("DynamicMaskHead", config, inputs, outputs, static_batch)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    runner: onnxruntime.InferenceSession | ReferenceEvaluator, feeds: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    return [np.asarray(output) for output in runner.run(None, dict(feeds))]


def in_openvino(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of `model` in OpenVINO, in their order."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    inlined = onnx.inliner.inline_local_functions(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(core().read_model(inlined.SerializeToString()), "CPU", settings)
    known = {port.get_any_name() for port in compiled.inputs}  # a body need not read all
    feeds = {name: array for name, array in inputs.items() if name in known}
    return list(compiled(feeds).values())
