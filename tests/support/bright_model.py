"""A tiny file that keeps the graph contract: its one instance is whatever is bright in the image.

Box: the whole image. Score: the brightest mask cell, 0 to 1; below 0.3 there is no instance.
Mask: brightness averaged over 4x4 pixels. Label: 0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata


def bright_config(**overrides: Any) -> CondInstConfig:
    """The nano config with one slot and a small input."""
    return preset(
        "condinst_nano", **{"max_detections": 1, "short_side": 96, "long_side": 160, **overrides}
    )


def write_bright_model(path: Path, *, half: bool = False, **metadata: Any) -> Path:
    """The file at `path`; `metadata` are fields of Metadata, `half` makes the masks float16."""
    data = Metadata(**{"config": bright_config(), "versions": {"onnx": "1"}, **metadata})
    model = _model(data.batch or "N", data.size or ("H", "W"), half)
    for key, value in data.to_props().items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def _model(batch: int | str, size: tuple[int | str, int | str], half: bool) -> onnx.ModelProto:
    mask_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    constants = {
        "level": np.float32(255),
        "least": np.float32(0.3),
        "axis_1": np.array([1]),
        "axis_3": np.array([3]),
        "axes_23": np.array([2, 3]),
        "xyxy": np.array([2, 2, 1, 0]),  # columns of (rows, columns, 0)
        "pads": np.array([0, 0, 0, 1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        node("Div", ["x", "level"], ["unit"]),
        node("ReduceMax", ["unit", "axis_3"], ["grey"], keepdims=0),
        node("Unsqueeze", ["grey", "axis_1"], ["planes"]),
        node("AveragePool", ["planes"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Cast", ["cells"], ["masks"], to=mask_type),
        node("ReduceMax", ["cells", "axes_23"], ["scores"], keepdims=0),
        node("Greater", ["scores", "least"], ["found"]),
        node("Cast", ["found"], ["count"], to=TensorProto.INT32),
        node("Squeeze", ["count", "axis_1"], ["num_detections"]),
        node("Sub", ["count", "count"], ["labels"]),
        node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
        node("Pad", ["sizes", "pads"], ["sizes_0"]),
        node("Gather", ["sizes_0", "xyxy"], ["box"], axis=1),
        node("Unsqueeze", ["box", "axis_1"], ["boxes"]),
    ]
    value = helper.make_tensor_value_info
    rows, columns = (f"{side}/4" if isinstance(side, str) else side // 4 for side in size)
    graph = helper.make_graph(
        nodes,
        "bright",
        [
            value("images", TensorProto.UINT8, [batch, *size, 3]),
            value("image_sizes", TensorProto.INT32, [batch, 2]),
        ],
        [
            value("num_detections", TensorProto.INT32, [batch]),
            value("boxes", TensorProto.FLOAT, [batch, 1, 4]),
            value("scores", TensorProto.FLOAT, [batch, 1]),
            value("labels", TensorProto.INT32, [batch, 1]),
            value("masks", mask_type, [batch, 1, rows, columns]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def changed(source: Path, path: Path, key: str, value: str | None) -> Path:
    """A copy of a model file with one metadata property changed or, with None, all removed."""
    model = onnx.load(source)
    props = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, {} if value is None else {**props, key: value})
    onnx.save(model, path)
    return path
