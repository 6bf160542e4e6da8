"""A small network with AdelaiDet's configuration."""

from typing import Any

import torch
from torch import Tensor

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.model.heads import HeadOutputs
from tests.support.classes import numbered_classes
from tests.support.foreign_names import (
    randomised,
)

# a small network: AdelaiDet's keys, and the fields they stand for
TINY_CFG: dict[str, Any] = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.FCOS.NUM_CLASSES": 3,
    "MODEL.FCOS.NUM_CLS_CONVS": 1,
    "MODEL.FCOS.NUM_BOX_CONVS": 2,
    "MODEL.CONDINST.MASK_BRANCH.CHANNELS": 8,
    "MODEL.CONDINST.MASK_BRANCH.NUM_CONVS": 2,
}


TINY: dict[str, Any] = {
    "stem_channels": 8,
    "res2_channels": 16,
    "width_per_group": 4,
    "neck_channels": 16,
    **numbered_classes(3),
    "class_convs": 1,
    "box_convs": 2,
    "mask_branch_channels": 8,
    "mask_branch_convs": 2,
    "deform_modulated": False,
}
FCOS, BRANCH = "MODEL.FCOS.", "MODEL.CONDINST.MASK_BRANCH."
RESNETS = "MODEL.RESNETS."


def tiny_model(**fields: Any) -> CondInst:
    model = build_condinst(override(CondInstConfig(name="adelaidet"), **TINY | fields)).eval()
    randomised(model)
    return model


def assert_same(found: CondInst, expected: CondInst) -> None:
    """Equal configs, equal tensors, equal outputs; `found` is ready for inference."""
    assert found.config == expected.config and not found.training
    theirs, ours = found.state_dict(), expected.state_dict()
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(theirs[name], ours[name])] == []
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (1, 128, 160, 3), generator=random, dtype=torch.uint8)
    sizes = torch.tensor([[120, 160]], dtype=torch.int32)
    with torch.inference_mode():
        outputs = tensors(found.heads(images, sizes)), tensors(expected.heads(images, sizes))
    for a, b in zip(*outputs, strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


def tensors(raw: HeadOutputs) -> list[Tensor]:
    maps = [*raw.class_logits, *raw.regression, *raw.centreness, *raw.params, raw.mask_features]
    return maps if raw.semantic_logits is None else [*maps, raw.semantic_logits]
