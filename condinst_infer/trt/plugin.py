"""TensorRT plugins of the custom nodes, of the kind that leaves nothing behind but the engine.

While it builds, TensorRT asks for output shapes, types, launch geometry, scalars and PTX, and puts
them into the engine. Running that needs neither Python nor this package nor a plugin library.
"""

import importlib
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.errors import SessionError, require

NAMESPACE = "condinst"  # domain of the nodes, and their attribute plugin_namespace

_OLDEST = (10, 9)  # the first whose ONNX parser takes plugins with embedded kernels
_LOCK = threading.Lock()
# The parser makes int32 of `ints` and float32 of `floats`, whatever a plugin declares. Arrays of
# one, because the bindings up to 11.1 call int() on them for a scalar, which NumPy 2.4 refuses.
_INTS = np.ndarray[Any, np.dtype[np.int32]]
_FLOATS = np.ndarray[Any, np.dtype[np.float32]]

_Tensors = Mapping[str, Any]  # name: tensorrt.plugin.TensorDesc
_Settings = Mapping[str, Any]  # attribute: int or float


@dataclass(frozen=True)
class Plugin:
    """A node as TensorRT sees it."""

    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # name: annotation
    outputs: tuple[str, ...]
    types: str  # of inputs and outputs; every "|" is decided for the same side
    describe: Callable[[ModuleType, _Tensors, _Settings], Sequence[tuple[tuple, Any]]]
    launch: Callable[[ModuleType, _Tensors, _Settings], kernels.Launch]


def _describe_nms(
    trt: ModuleType, tensors: _Tensors, settings: _Settings
) -> list[tuple[tuple, Any]]:
    n = tensors["scores"].shape_expr[0]
    return [((n, settings["max_detections"]), trt.int32), ((n,), trt.int32)]


def _launch_nms(_: ModuleType, tensors: _Tensors, settings: _Settings) -> kernels.Launch:
    n, m = tensors["scores"].shape_expr
    if m.is_constant:
        m = m.constant_value()  # so that it is checked against the kernel's limit
    return kernels.class_nms(n, m, **settings)


def _describe_masks(
    _: ModuleType, tensors: _Tensors, settings: _Settings
) -> list[tuple[tuple, Any]]:
    n, _c, h, w = tensors["features"].shape_expr
    k, factor = tensors["params"].shape_expr[1], settings["factor"]
    return [((n, k, h * factor, w * factor), tensors["features"].dtype)]


def _launch_masks(trt: ModuleType, tensors: _Tensors, settings: _Settings) -> kernels.Launch:
    n, _, h, w = tensors["features"].shape_expr
    k = tensors["params"].shape_expr[1]
    dtype = np.dtype(trt.nptype(tensors["features"].dtype))
    words = {
        "coordinates": kernels.COORDINATES[settings["coordinates"]],
        "use_features": bool(settings["use_features"]),
    }
    return kernels.dynamic_mask_head(n, k, h, w, dtype=dtype, **{**settings, **words})


_MASK_HEAD = Plugin(
    name="DynamicMaskHead",
    inputs=("features", "params", "centres", "sizes", "count"),
    attributes={
        "stride": _INTS,
        "factor": _INTS,
        "depth": _INTS,
        "width": _INTS,
        "channels": _INTS,
        "coordinates": _INTS,
        "use_features": _INTS,
    },
    outputs=("masks",),
    types="FP32|FP16, FP32|FP16, FP32, FP32, INT32, FP32|FP16",
    describe=_describe_masks,
    launch=_launch_masks,
)
PLUGINS = (
    Plugin(
        name="ClassNMS",
        inputs=("boxes", "scores", "labels"),
        attributes={"iou_threshold": _FLOATS, "max_detections": _INTS, "runs": _INTS},
        outputs=("keep", "count"),
        types="FP32, FP32, INT32, INT32, INT32",
        describe=_describe_nms,
        launch=_launch_nms,
    ),
    _MASK_HEAD,
    replace(_MASK_HEAD, name="CandidateMaskHead"),  # before mask NMS
)
# those of a full graph, by its NMS; MaskNMS itself is several launches, so it stays what its
# function body says
NODES = {
    "box": ("ClassNMS", "DynamicMaskHead"),
    "mask": ("CandidateMaskHead", "DynamicMaskHead"),
}


def register() -> None:
    """Make the plugins known to TensorRT's ONNX parser; those it knows already are left alone.

    Raises:
        MissingExtraError: TensorRT is not installed.
        SessionError: it is older than 10.9.
    """
    trt = require("tensorrt", "tensorrt")
    if tuple(map(int, trt.__version__.split(".")[:2])) < _OLDEST:
        raise SessionError(
            f"TensorRT {trt.__version__} can't put our kernels into an engine, 10.9 and newer can. "
            "Install one: pip install --upgrade 'condinst-infer[tensorrt]'"
        )
    with _LOCK:
        trtp = _plugin_module(trt)
        known = getattr(trtp.op, NAMESPACE, None)
        for plugin in PLUGINS:
            if not hasattr(known, plugin.name):
                _register(trt, trtp, plugin)


def _plugin_module(trt: Any) -> ModuleType:
    """The module tensorrt.plugin, without the warnings of the first import."""

    class QuietLogger(trt.Logger):
        def log(self, severity: Any, message: str) -> None:
            if "experimental" not in message:  # it goes to stdout, as what `--json` prints
                super().log(severity, message)

    original, trt.Logger = trt.Logger, QuietLogger
    try:
        with warnings.catch_warnings():  # its docstrings are no raw strings
            warnings.filterwarnings("ignore", ".*invalid escape sequence")
            return importlib.import_module("tensorrt.plugin")
    finally:
        trt.Logger = original


def _register(trt: ModuleType, trtp: ModuleType, plugin: Plugin) -> None:
    def describe(*tensors: Any, **attributes: Any) -> tuple[Any, ...]:
        named = dict(zip(plugin.inputs, tensors, strict=True))
        outputs = []
        for shape, dtype in plugin.describe(trt, named, _numbers(attributes)):
            if tensors[0].shape_expr[0].is_fake:
                # Only types are wanted. 10.9 still holds the expression builder of an earlier
                # call, and would ask it, dead or alive, for the numbers in a shape.
                shape = tuple(trtp.ShapeExpr() for _ in shape)
            outputs.append(trtp.from_shape_expr(shape, dtype))
        return tuple(outputs)

    def tune(*_: Any) -> list[Any]:
        return [trtp.AutoTuneCombination(plugin.types, "LINEAR")]

    def launch(*given: Any) -> tuple[str, str, Any, Any]:
        tensors = dict(zip(plugin.inputs, given, strict=False))
        values = given[len(tensors) : -2]  # what follows are outputs and tactic
        attributes = dict(zip(plugin.attributes, values, strict=True))
        call = plugin.launch(trt, tensors, _numbers(attributes))
        geometry = trtp.KernelLaunchParams(*call.grid, block_x=call.block)
        scalars = [trtp.SymInt32(scalar) for scalar in call.scalars]  # no other type is taken
        return call.kernel, kernels.ptx(call.source), geometry, trtp.SymIntExprs.from_tuple(scalars)

    tensors = dict.fromkeys(plugin.inputs, trtp.TensorDesc)
    described = tuple[(trtp.TensorDesc,) * len(plugin.outputs)]
    outputs = {"outputs": described}
    launched = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    name = f"{NAMESPACE}::{plugin.name}"
    trtp.register(name)(_signature(describe, {**tensors, **plugin.attributes}, described))
    trtp.autotune(name)(_signature(tune, {**tensors, **outputs}, list[trtp.AutoTuneCombination]))
    # all attributes, for they are all passed, and by position
    parameters = {**tensors, **plugin.attributes, **outputs, "tactic": int}
    trtp.aot_impl(name)(_signature(launch, parameters, launched))


def _signature(function: Any, parameters: Mapping[str, Any], returned: Any) -> Any:
    """`function` with these parameters (name: annotation), which tensorrt.plugin reads."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(n, kind, annotation=a) for n, a in parameters.items()],
        return_annotation=returned,
    )
    return function


def _numbers(attributes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: array.item() for name, array in attributes.items()}
