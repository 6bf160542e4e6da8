"""Which part of the network a node belongs to."""

import pytest

from condinst_infer.contract.session import NodeTime
from condinst_infer.profiling.layers import PARTS, convolution_share, layer_times

NODES = [  # as ONNX Runtime and PyTorch name them
    NodeTime("Cast_7", "Cast", 1),
    NodeTime("normalised", "normalised", 2),
    NodeTime("backbone/stem/Relu_nchwc", "Conv", 40),
    NodeTime("backbone", "ResNet", 3),
    NodeTime("neck/lateral5/conv/Conv_nchwc", "Conv", 10),
    NodeTime("ReorderOutput_token_7", "ReorderOutput", 4),
    NodeTime("Shape_2", "Shape", 0.5),
    NodeTime("fcos/share_tower/0/norm", "GroupNorm", 5),
    NodeTime("fcos", "towers", 1),
    NodeTime("mask_branch/refine/0/conv", "Conv2d", 20),
    NodeTime("mask_branch/Cast", "Convert", 0.25),
    NodeTime("semantic_branch/output/0/Conv", "Conv", 2),
    NodeTime("TopK_3", "TopK", 6),
    NodeTime("_inlfunc_ClassNMS_ClassNMS/scores_left", "Loop", 7),
    NodeTime("", "CondInst", 0.5),
    NodeTime("DynamicMaskHead", "dynamic_mask_head", 8),
    NodeTime("_inlfunc_DynamicMaskHead_DynamicMaskHead/x0_flat_9", "MatMul", 1),
    NodeTime("DynamicMaskHead/free", "MatMul", -0.5),
]


def test_every_node_has_one_part() -> None:
    times = layer_times(NODES)
    assert tuple(times) == PARTS
    assert times == {
        "input normalisation": 3,
        "backbone": 43,
        "neck": 10,
        "heads": 6,
        "mask branch": 20.25,
        "semantic branch": 2,
        "candidate selection": 7,
        "NMS": 7,
        "mask heads": 8.5,
        "changes of layout": 4,
    }
    assert sum(times.values()) == sum(node.ms for node in NODES)


def test_only_panoptic_models_have_a_semantic_branch() -> None:
    others = [node for node in NODES if not node.name.startswith("semantic_branch")]
    assert set(PARTS) - set(layer_times(others)) == {"semantic branch"}


def test_no_part_is_below_zero() -> None:
    times = layer_times([*NODES, NodeTime("ClassNMS", "Loop", -20)])
    assert times["NMS"] == 0


def test_names_without_modules_tell_no_parts() -> None:
    assert layer_times([NodeTime("relu_7_nchwc", "Conv", 1)]) == {}


@pytest.mark.parametrize(
    ("op", "is_one"),
    [
        *[(op, True) for op in ("Conv", "FusedConv", "QLinearConv", "Convolution", "Conv2d")],
        *[(op, True) for op in ("GroupConvolution", "NhwcFusedConv", "ConvInteger")],
        *[(op, False) for op in ("Convert", "ConvNorm", "MatMul", "Reorder", "ConvertLike")],
    ],
)
def test_convolutions(op: str, is_one: bool) -> None:
    nodes = [NodeTime("a", op, 3), NodeTime("b", "Add", 1)]
    assert convolution_share(nodes) == (0.75 if is_one else 0)
