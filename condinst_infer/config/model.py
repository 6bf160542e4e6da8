"""Everything that decides what a model computes: frozen dataclasses, to and from JSON.

Field names are unique over all sections, so that a variant is one flat override away:
`override(config, mask_stride=2, nms="mask")`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from condinst_infer.config.bounds import MAX_TEXT
from condinst_infer.config.class_names import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from condinst_infer.config.validation import check, replace_fields
from condinst_infer.errors import ConfigError, shorten
from condinst_infer.system.json_text import parse_json

Size = tuple[int, int]  # (height, width), pixels

ABSOLUTE_SCALE = 512  # absolute coordinates are pixel / 512: our choice, the papers give none
SEMANTIC_STRIDE = 4  # network pixels per cell of the semantic logits
MILLION = 1_000_000  # shares are compared as whole numbers: exactly 40 % is not more than 40 %
MAX_PIXELS = 100_000_000  # 300 MB decoded; a hostile file of a few kilobytes can claim more
MAX_BATCH = 1  # images a dynamic file is given at once: more gain nothing on a CPU, and cost memory
RECONNECT = 5  # attempts to open a camera or a live stream again, before it counts as lost


@dataclass(frozen=True)
class InputConfig:
    """Resizing and normalisation of a photograph into network input."""

    short_side: int = 800  # MIN_SIZE_TEST; paper section 4.1
    long_side: int = 1333  # MAX_SIZE_TEST
    resize_rule: str = "short_first"  # mmdetection's "min_scale" differs by a pixel at times
    channel_order: str = "bgr"  # order of the network's input channels; callers always give BGR
    pixel_mean: tuple[float, ...] = (103.53, 116.28, 123.675)  # in channel_order
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)  # Caffe-style weights expect no scaling
    size_divisor: int = 32  # canvases are multiples of this


@dataclass(frozen=True)
class BackboneConfig:
    """The bottom-up network."""

    backbone_type: str = "resnet50"
    backbone_norm: str = "frozen_bn"  # "bn_eval": running statistics, trained weight and bias
    frozen_stages: int = 2  # stem is 1, res2 is 2, ...; 0 trains everything (detectron2 FREEZE_AT)
    stem_channels: int = 64
    res2_channels: int = 256  # doubled in each later stage
    groups: int = 1  # ResNeXt: 32 groups of width 8
    width_per_group: int = 64
    stride_in_1x1: bool = True  # MSRA weights; torchvision and mmdetection: False
    deform_stages: tuple[bool, ...] = (False, False, False, False)  # res2..res5
    deform_modulated: bool = True
    deform_groups: int = 1


@dataclass(frozen=True)
class NeckConfig:
    """The feature pyramid."""

    neck_type: str = "fpn"
    neck_channels: int = 256
    neck_norm: str = "none"
    neck_in_levels: tuple[int, ...] = (3, 4, 5)
    neck_extra_levels: int = 2  # P6 and P7
    bifpn_repeats: int = 6


@dataclass(frozen=True)
class HeadsConfig:
    """FCOS heads and the controller, shared by all levels."""

    num_classes: int = 80
    head_levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    sizes_of_interest: tuple[int, ...] = (64, 128, 256, 512, 1024)  # per level, pixels
    share_convs: int = 0  # 4 in the shared-tower variant
    class_convs: int = 4
    box_convs: int = 4
    tower_norm: str = "gn"  # "bn" keeps one batch norm per level
    regression_scales: bool = True  # a learned factor per level
    prior_probability: float = 0.01  # initial class score; focal loss paper section 4.1


@dataclass(frozen=True)
class MaskConfig:
    """Mask branch and the dynamic mask head."""

    mask_levels: tuple[int, ...] = (3, 4, 5)  # inputs of the mask branch; the first sets its stride
    mask_branch_channels: int = 128
    mask_branch_convs: int = 4
    mask_branch_norm: str = "bn"
    mask_channels: int = 8  # C_bottom, paper table 2
    mask_head_depth: int = 3  # paper table 1a
    mask_head_width: int = 8  # paper table 1b
    coordinates: str = "relative"  # paper table 3; "absolute" is pixel / 512
    use_features: bool = True
    mask_stride: int = 4  # network pixels per mask cell; paper table 5
    semantic_loss: bool = False  # auxiliary head, training only; paper section 3.3


@dataclass(frozen=True)
class DetectConfig:
    """Rules that turn raw head outputs into kept instances."""

    score_threshold: float = 0.05  # on the quantity of threshold_by, before the root
    threshold_by: str = "product"  # class * centreness; "class": class alone, as mmdetection
    rank_by: str = "product"  # what the per-level limit ranks by; "class" as mmdetection
    score_root: bool = True  # report sqrt(class * centreness)
    clip_before_nms: bool = False  # clip to the image and drop empty boxes first, as mmdetection
    pre_nms_topk: int = 1000  # (location, class) pairs per level
    nms_iou: float = 0.6  # same-class boxes above this overlap are dropped
    max_detections: int = 100  # COCO evaluates at most 100 per image
    nms: str = "box"  # "mask": by overlap of masks, without a box branch; paper table 6
    mask_nms: str = "greedy"  # which mask NMS; "fast" (arXiv:1904.02689), "matrix" (2003.10152)
    mask_nms_candidates: int = 300  # best of an image; each costs a mask head


@dataclass(frozen=True)
class PanopticConfig:
    """The stuff behind the things and how both are merged; journal paper sections 3.1 and 3.4."""

    stuff_names: tuple[str, ...] = ()  # none: an instance model without a semantic branch
    stuff_ids: tuple[int, ...] = ()  # category ids of the data set
    semantic_levels: tuple[int, ...] = (2, 3, 4, 5)  # inputs of the semantic branch
    instance_threshold: float = 0.45  # lowest reported score of an instance
    overlap_threshold: float = 0.4  # an instance that loses more of its area is dropped
    stuff_area_limit: int = 4096  # smaller stuff is void, pixels; as COCO's panoptic baseline


@dataclass(frozen=True)
class CondInstConfig:
    """A whole model: what is built, how it is fed, what its classes are called."""

    name: str = "condinst_r50"
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    panoptic: PanopticConfig = field(default_factory=PanopticConfig)
    class_names: tuple[str, ...] = COCO_CLASS_NAMES
    category_ids: tuple[int, ...] = COCO_CATEGORY_IDS

    def __post_init__(self) -> None:
        check(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """Network pixels per cell of each head level."""
        return tuple(2**level for level in self.heads.head_levels)

    @property
    def mask_feature_stride(self) -> int:
        """Network pixels per cell of the mask features."""
        return 2 ** self.mask.mask_levels[0]

    @property
    def mask_factor(self) -> int:
        """Upsampling between mask features and masks."""
        return self.mask_feature_stride // self.mask.mask_stride

    @property
    def is_panoptic(self) -> bool:
        """True if there is a semantic branch: `semantic` has 1 + len(stuff_names) channels."""
        return bool(self.panoptic.stuff_names)

    @property
    def mask_candidates(self) -> int:
        """Number of candidates of an image that get masks for mask NMS."""
        detect = self.detect
        return min(detect.mask_nms_candidates, len(self.strides) * detect.pre_nms_topk)

    @property
    def num_params(self) -> int:
        """P, the parameters of one mask head: 169 by default; paper section 3.2."""
        return sum(o * i + o for o, i in self.mask_layers)

    @property
    def mask_layers(self) -> tuple[tuple[int, int], ...]:
        """(out, in) channels of each layer of the mask head."""
        settings = self.mask_head_settings
        return mask_layers(**{k: v for k, v in settings.items() if k not in ("stride", "factor")})

    @property
    def mask_head_settings(self) -> dict[str, Any]:
        """The keyword arguments of `ops.dynamic_mask_head` for this model."""
        mask = self.mask
        return {
            "stride": self.mask_feature_stride,
            "factor": self.mask_factor,
            "depth": mask.mask_head_depth,
            "width": mask.mask_head_width,
            "channels": mask.mask_channels,
            "coordinates": mask.coordinates,
            "use_features": mask.use_features,
        }

    @property
    def reported_floor(self) -> float:
        """No instance with a lower score is ever reported; 0 where the class alone decides."""
        detect = self.detect
        if detect.threshold_by != "product":
            return 0.0
        return detect.score_threshold**0.5 if detect.score_root else detect.score_threshold

    def to_json(self) -> str:
        """This config as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "CondInstConfig":
        """The config `to_json` wrote; ConfigError if it is anything else."""
        return config_from_dict(parse_json(text, "the configuration", ConfigError))


def mask_layers(
    *, depth: int, width: int, channels: int, coordinates: str, use_features: bool
) -> tuple[tuple[int, int], ...]:
    """(out, in) channels of each layer of a mask head; (8, 10), (8, 8), (1, 8) in the papers."""
    first = 2 * (coordinates != "none") + channels * use_features
    widths = [first, *[width] * (depth - 1), 1]
    return tuple(zip(widths[1:], widths[:-1], strict=True))


SECTIONS: dict[str, type] = {
    "input": InputConfig,
    "backbone": BackboneConfig,
    "neck": NeckConfig,
    "heads": HeadsConfig,
    "mask": MaskConfig,
    "detect": DetectConfig,
    "panoptic": PanopticConfig,
}
SECTION_OF = {f.name: s for s, cls in SECTIONS.items() for f in fields(cls)}


def config_from_dict(data: Any) -> CondInstConfig:
    """The config that `dataclasses.asdict` turned into `data`, or JSON with lists for tuples.

    Raises:
        ConfigError: fields are missing or unknown, or have values that make no model.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"the configuration is incomplete: it is {shorten(data)}, no object.")
    unknown = sorted(set(data) - {f.name for f in fields(CondInstConfig)})
    values: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        # files older than the section have its defaults
        found = data.get(section, {} if section == "panoptic" else None)
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"the configuration is incomplete: {section} is {shorten(found)}, no object."
            )
        names = {f.name for f in fields(kind)}
        unknown += sorted(set(found) - names)
        values[section] = kind(**{k: _tuples(v) for k, v in found.items() if k in names})
    if unknown:
        raise ConfigError(
            f"the configuration has unknown fields {', '.join(unknown)[:MAX_TEXT]}; "
            "it was written by a newer version: pip install -U condinst-infer"
        )
    return CondInstConfig(**values, **{k: _tuples(v) for k, v in data.items() if k not in SECTIONS})


def override(config: CondInstConfig, **values: Any) -> CondInstConfig:
    """`config` with fields replaced, each named flat: `override(c, mask_stride=2)`.

    Classes are three fields that change together: see `with_classes`.

    Raises:
        ConfigError: unknown field, or values that make no model.
    """
    return replace_fields(config, SECTIONS, values, "configuration field")


def with_classes(
    config: CondInstConfig, names: Sequence[str], ids: Sequence[int] | None = None
) -> CondInstConfig:
    """`config` with other classes.

    Args:
        names: class names, by label.
        ids: their category ids in the data set; None keeps those of as many classes, or numbers
            them 1, 2, ...

    Raises:
        ConfigError: names and ids are not as many, or there is none.
    """
    if ids is None:
        same = len(names) == len(config.category_ids)
        ids = config.category_ids if same else range(1, len(names) + 1)
    heads = dataclasses.replace(config.heads, num_classes=len(names))
    return dataclasses.replace(
        config, heads=heads, class_names=tuple(names), category_ids=tuple(ids)
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
