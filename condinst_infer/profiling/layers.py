"""Layer groups: the part of the network each node belongs to, and the time of the parts."""

import re
from collections.abc import Sequence

from condinst_infer.contract.session import NodeTime

_BEFORE, _BETWEEN, _LAYOUT = "input normalisation", "candidate selection", "changes of layout"
_SEMANTIC = "semantic branch"
_PARTS = {  # what a node's name holds -> its part; the first that fits
    "ClassNMS": "NMS",
    "MaskNMS": "NMS",
    "CandidateMaskHead": "mask heads",
    "DynamicMaskHead": "mask heads",
    "backbone/": "backbone",
    "neck/": "neck",
    "fcos/": "heads",
    "mask_branch/": "mask branch",
    "semantic_branch/": _SEMANTIC,
}
PARTS = (
    *(_BEFORE, "backbone", "neck", "heads", "mask branch", _SEMANTIC),
    *(_BETWEEN, "NMS", "mask heads", _LAYOUT),
)
_CONVOLUTION = re.compile(r"(Fused|QLinear|Nhwc|NhwcFused|Group)?Conv(olution|Integer|2d)?")


def layer_times(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Milliseconds of each of `PARTS`; nothing if the names tell no module, as in old files.

    Input and candidates are not modules: nodes without one are the first before the backbone
    began, the second after. ONNX Runtime puts nodes of its own between convolutions and others.

    Args:
        nodes: in the order they run in.
    """
    if not any(_part(node) == "backbone" for node in nodes):
        return {}
    times = dict.fromkeys(PARTS, 0.0)
    unnamed = _BEFORE
    for node in nodes:
        part = _part(node)
        if part == "backbone":
            unnamed = _BETWEEN
        times[part or unnamed] += node.ms
    if not times[_SEMANTIC]:  # only panoptic models have one
        del times[_SEMANTIC]
    return {part: max(0.0, ms) for part, ms in times.items()}


def convolution_share(nodes: Sequence[NodeTime]) -> float:
    """Share of the convolutions in the time of all nodes, 0 to 1."""
    convolutions = sum(node.ms for node in nodes if _CONVOLUTION.fullmatch(node.op))
    return convolutions / sum(node.ms for node in nodes)


def _part(node: NodeTime) -> str | None:
    for piece, part in _PARTS.items():
        if piece in f"{node.name}/":
            return part
    return _LAYOUT if node.op in ("ReorderInput", "ReorderOutput", "Reorder") else None
