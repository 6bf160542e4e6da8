"""Weights of the official implementation (AdelaiDet on detectron2)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condinst_infer.checkpoint.adelaidet_config import config_from_adelaidet
from condinst_infer.checkpoint.renaming import (
    DLA,
    UNUSED,
    Rules,
    add_prefix,
    model_from_renamed,
    renamer,
)
from condinst_infer.config.model import CondInstConfig
from condinst_infer.errors import CheckpointError
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.fpn import BiFPNLayer


def model_from_adelaidet(state_dict: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> CondInst:
    """The network of an AdelaiDet checkpoint, in evaluation mode.

    Args:
        state_dict: its weights, name -> tensor.
        cfg: its configuration, as for `config_from_adelaidet`.

    Raises:
        CheckpointError: lists every tensor that is missing, surplus or of the wrong shape.
        ConfigError: the configuration is not supported.
    """
    config = config_from_adelaidet(cfg)
    return model_from_renamed(config, state_dict, renamer(_rules(config)))


def cfg_from_adelaidet_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration from the shapes of the weights, for when no YAML is at hand."""
    fcos, bottom = "proposal_generator.fcos_head.", "backbone.bottom_up."

    def count(prefix: str) -> int:
        return len({k[len(prefix) :].split(".")[0] for k in state_dict if k.startswith(prefix)})

    levels = count(fcos + "scales.") or 5
    dla = f"{bottom}base_layer.0.weight" in state_dict
    towers = {t: f"{fcos}{t}_tower." for t in ("share", "cls", "bbox")}
    first = towers["share" if count(towers["share"]) else "cls"]
    norm = "none" if f"{first}1.bias" not in state_dict else "GN"
    norm = "BN" if f"{first}1.0.running_mean" in state_dict else norm
    per_conv = 1 if norm == "none" else 2  # modules with weights
    blocks = count(f"{bottom}res4.") or count(f"{bottom}backbone.res4.")
    bifpn = any("bifpn" in name for name in state_dict)
    if "controller.weight" not in state_dict or f"{fcos}cls_logits.weight" not in state_dict:
        raise CheckpointError("these are not the weights of a CondInst model of AdelaiDet.")
    real_time = {"INPUT.MIN_SIZE_TEST": 512, "INPUT.MAX_SIZE_TEST": 736} if levels == 3 else {}
    kind = ("dla" if dla else "resnet") + ("_bifpn" if bifpn else "_fpn")
    return real_time | {
        "MODEL.BACKBONE.NAME": f"build_fcos_{kind}_backbone",
        "MODEL.FPN.IN_FEATURES": [f"{'level' if dla else 'res'}{i}" for i in (3, 4, 5)],
        "MODEL.RESNETS.DEPTH": {6: 50, 23: 101, 36: 152}.get(blocks, 50),
        "MODEL.FCOS.NUM_CLASSES": len(state_dict[f"{fcos}cls_logits.weight"]),
        "MODEL.FCOS.IN_FEATURES": [f"p{i}" for i in range(3, 3 + levels)],
        "MODEL.FCOS.TOP_LEVELS": levels - 3,
        "MODEL.FCOS.NORM": norm,
        "MODEL.FCOS.NUM_SHARE_CONVS": count(towers["share"]) // per_conv,
        "MODEL.FCOS.NUM_CLS_CONVS": count(towers["cls"]) // per_conv,
        "MODEL.FCOS.NUM_BOX_CONVS": count(towers["bbox"]) // per_conv,
        "MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": "mask_branch.logits.weight" in state_dict,
    }


def _rules(config: CondInstConfig) -> Rules:
    """Their names -> ours."""
    bottom = r"backbone\.bottom_up\.(?:backbone\.)?"
    resnet = (
        (r"stem\.conv1\.norm\.(\w+)", r"backbone.stem.norm.\1"),
        (r"stem\.conv1\.(weight)", r"backbone.stem.conv.\1"),
        (r"(res\d\.\d+)\.conv2_offset\.(\w+)", r"backbone.\1.conv2.offset.\2"),
        (r"(res\d\.\d+)\.(conv\d|shortcut)\.norm\.(\w+)", r"backbone.\1.\2.norm.\3"),
        (r"(res\d\.\d+)\.(conv\d|shortcut)\.(weight)", r"backbone.\1.\2.conv.\3"),
        (r"res6\.reduction\.norm\.(\w+)", r"neck.reduction.norm.\1"),
        (r"res6\.reduction\.(\w+)", r"neck.reduction.conv.\1"),
    )
    fcos = r"proposal_generator\.fcos_head\."
    rules = [
        (r"mask_head\.(?:sizes_of_interest|_iter)", UNUSED),
        (r"pixel_(?:mean|std)", UNUSED),
        *add_prefix(bottom, resnet),
        *add_prefix(bottom, DLA),
        (r"backbone\.fpn_(lateral|output)(\d)\.norm\.(\w+)", r"neck.\1\2.norm.\3"),
        (r"backbone\.fpn_(lateral|output)(\d)\.(\w+)", r"neck.\1\2.conv.\3"),
        (r"backbone\.top_block\.(p\d)\.(\w+)", r"neck.\1.conv.\2"),
        (fcos + r"cls_logits\.(\w+)", r"fcos.class_logits.\1"),
        (fcos + r"bbox_pred\.(\w+)", r"fcos.box_regression.\1"),
        (fcos + r"ctrness\.(\w+)", r"fcos.centreness.\1"),
        (fcos + r"scales\.(\d+)\.scale", r"fcos.scales.\1"),
        (r"controller\.(\w+)", r"fcos.controller.\1"),
        (r"mask_branch\.(refine|tower)\.(\d+)\.0\.(\w+)", r"mask_branch.\1.\2.conv.\3"),
        (r"mask_branch\.(refine|tower)\.(\d+)\.1\.(\w+)", r"mask_branch.\1.\2.norm.\3"),
        (r"mask_branch\.tower\.\d+\.(weight|bias)", r"mask_branch.output.\1"),
        (r"mask_branch\.seg_head\.(\d)\.0\.(\w+)", r"mask_branch.semantic.\1.conv.\2"),
        (r"mask_branch\.seg_head\.(\d)\.1\.(\w+)", r"mask_branch.semantic.\1.norm.\2"),
        (r"mask_branch\.logits\.(\w+)", r"mask_branch.semantic.2.\1"),
    ]
    return [*rules, *_tower_rules(config, fcos), *_bifpn_rules(config)]


def _tower_rules(config: CondInstConfig, fcos: str) -> list[tuple[str, str]]:
    """A tower is a flat list there: convolution, norm (if any), ReLU, and so on."""
    rules, heads = [], config.heads
    step = 2 if heads.tower_norm == "none" else 3
    for theirs, ours, convs in (
        ("share", "share", heads.share_convs),
        ("cls", "class", heads.class_convs),
        ("bbox", "box", heads.box_convs),
    ):
        for i in range(convs):
            tower = rf"{fcos}{theirs}_tower\."
            rules.append((rf"{tower}{step * i}\.(\w+)", rf"fcos.{ours}_tower.{i}.conv.\1"))
            if step == 3:
                norm = rf"fcos.{ours}_tower.{i}.norm.\1"
                rules.append((rf"{tower}{step * i + 1}\.([\w.]+)", norm))
    return rules


def _bifpn_rules(config: CondInstConfig) -> list[tuple[str, str]]:
    """A node is called f<level>_<input>_<input>... there."""
    rules = []
    for i in range(config.neck.bifpn_repeats if config.neck.neck_type == "bifpn" else 0):
        layer, ours = rf"backbone\.\w*bifpn\w*\.{i}\.", f"neck.layers.{i}."
        rules += [
            (layer + r"lateral_(\d)_f\1\.norm\.(\w+)", ours + r"lateral.\1.norm.\2"),
            (layer + r"lateral_(\d)_f\1\.(\w+)", ours + r"lateral.\1.conv.\2"),
        ]
        for node, (level, inputs) in enumerate(BiFPNLayer.NODES):
            name = f"f{level}_" + "_".join(map(str, inputs))
            rules += [
                (rf"{layer}weights_{name}", f"{ours}weights.{node}"),
                (rf"{layer}outputs_{name}\.norm\.(\w+)", rf"{ours}outputs.{node}.norm.\1"),
                (rf"{layer}outputs_{name}\.(\w+)", rf"{ours}outputs.{node}.conv.\1"),
            ]
    return rules
