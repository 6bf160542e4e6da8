"""Export of an operation as one node of the ONNX graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DOMAIN = "condinst"


def is_exporting() -> bool:
    """True while torch traces the network into ONNX."""
    return torch.onnx.is_in_onnx_export()


def custom_node(
    name: str,
    inputs: Sequence[Tensor],
    attributes: dict[str, Any],
    outputs: Sequence[tuple[torch.dtype, Sequence[Any]]],
    *,
    plugin: bool = True,
) -> Sequence[Tensor]:
    """Outputs (dtype, shape) of a node `condinst::name` in the traced graph.

    `plugin_namespace` and `aot` make TensorRT prefer the plugin to the function body; a node
    without a plugin must not have them.
    """
    attributes = attributes | ({"plugin_namespace": DOMAIN, "aot": 1} if plugin else {})
    return torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        inputs,
        attrs=attributes,
        dtypes=[dtype for dtype, _ in outputs],
        shapes=[shape for _, shape in outputs],
        version=1,
    )


def quotient(dividend: Tensor, divisor: int) -> Tensor:
    """`dividend // divisor` of integers >= 0, rounded to zero below: one Div in the graph.

    The exporter makes seven nodes of `//` and a detour over floats of `torch.div`.
    """
    if not is_exporting():
        return torch.div(dividend, divisor, rounding_mode="trunc")
    by = torch.full((), divisor, dtype=dividend.dtype)
    return torch.onnx.ops.symbolic(
        "Div", (dividend, by), dtype=dividend.dtype, shape=dividend.shape
    )
