"""CondInst models that others have published weights of: their configurations by name.

Names, APs and licences are those of the authors' own lists: configs/CondInst/README.md and
README.md of aim-uofa/AdelaiDet, configs/condinst/README.md and LICENSE of open-mmlab/mmdetection.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from condinst_infer.errors import ConfigError, did_you_mean

ADELAIDET, MMDET = "AdelaiDet", "mmdetection"
# neither list says more of the weights than the projects do of themselves
LICENCES = {
    ADELAIDET: "academic use only (2-clause BSD); others ask the authors",
    MMDET: "Apache-2.0",
}


class PublishedModel(NamedTuple):
    """One model of a list: what differs from its family's defaults, and what it reaches."""

    name: str
    family: str
    cfg: Mapping[str, Any]  # keys of the family's configurations
    box_ap: float  # on val2017, as its list says
    mask_ap: float


_101 = {"MODEL.RESNETS.DEPTH": 101}
_BIFPN = {"MODEL.BACKBONE.NAME": "build_fcos_resnet_bifpn_backbone"}
_SEM = {"MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": True}

_MODELS = (
    PublishedModel("condinst_r50_fpn_ms-poly-90k_coco_instance", MMDET, {}, 39.8, 36.0),
    PublishedModel("MS_R_50_1x", ADELAIDET, {}, 39.7, 35.7),
    PublishedModel("MS_R_50_3x", ADELAIDET, {}, 41.9, 37.5),
    PublishedModel("MS_R_101_3x", ADELAIDET, _101, 43.3, 38.6),
    PublishedModel("MS_R_50_3x_sem", ADELAIDET, _SEM, 42.6, 38.2),
    PublishedModel("MS_R_101_3x_sem", ADELAIDET, _101 | _SEM, 44.6, 39.8),
    PublishedModel("MS_R_50_BiFPN_1x", ADELAIDET, _BIFPN, 42.5, 37.3),
    PublishedModel("MS_R_50_BiFPN_3x", ADELAIDET, _BIFPN, 44.3, 38.9),
    PublishedModel("MS_R_50_BiFPN_3x_sem", ADELAIDET, _BIFPN | _SEM, 44.7, 39.4),
    PublishedModel("MS_R_101_BiFPN_3x", ADELAIDET, _101 | _BIFPN, 45.3, 39.6),
    PublishedModel("MS_R_101_BiFPN_3x_sem", ADELAIDET, _101 | _BIFPN | _SEM, 45.7, 40.2),
)
PUBLISHED: Mapping[str, PublishedModel] = {model.name: model for model in _MODELS}


def published_model(name: str) -> PublishedModel:
    """The published model called `name`; "CondInst_" before it, as AdelaiDet's list has, may stay.

    Raises:
        ConfigError: there is none of this name.
    """
    short = name.removeprefix("CondInst_")
    if short not in PUBLISHED:
        hint = did_you_mean(short, PUBLISHED)
        raise ConfigError(
            f"nobody has published a CondInst model {name!r}{hint} "
            "List them: condinst presets --published"
        )
    return PUBLISHED[short]
