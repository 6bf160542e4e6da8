"""Validation of configurations, of training settings and of numbers that callers give."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

from condinst_infer.config.bounds import (
    MAX_PARAMETERS,
    MAX_TEXT,
    largest,
    parameters_at_most,
)
from condinst_infer.config.field_types import has_type, words_of
from condinst_infer.errors import ConfigError, did_you_mean, shorten

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CHOICES: dict[str, tuple[str, ...]] = {
    "resize_rule": ("short_first", "min_scale"),
    "channel_order": ("bgr", "rgb"),
    "backbone_type": (*RESNETS, "dla34"),
    "backbone_norm": ("frozen_bn", "bn", "bn_eval", "gn"),
    "neck_type": ("fpn", "bifpn"),
    "neck_norm": ("none", "bn", "gn"),
    "tower_norm": ("none", "bn", "gn"),
    "mask_branch_norm": ("none", "bn", "gn"),
    "coordinates": ("none", "relative", "absolute"),
    "threshold_by": ("product", "class"),
    "rank_by": ("product", "class"),
    "nms": ("box", "mask"),
    "mask_nms": ("greedy", "fast", "matrix"),
}


LARGEST_REAL = 1e9  # float32 has headroom above


def check(config: Any) -> None:
    """ConfigError for the first rule that `config` breaks."""
    for section in fields(config):
        settings, kind = getattr(config, section.name), section.type
        if isinstance(kind, type) and is_dataclass(kind) and not is_dataclass(settings):
            raise ConfigError(
                f"{section.name} is {shorten(settings)}; it must be of type {kind.__name__}."
            )
        if not is_dataclass(settings):
            check_field(section.name, kind, settings)
        for f in fields(settings) if is_dataclass(settings) else ():
            least = 0 if f.name in _MAY_BE_ZERO else 1
            check_field(f.name, f.type, getattr(settings, f.name), least=least, most=1)
            _check_levels(f.name, f.type, getattr(settings, f.name))
    for rule, holds in _rules(config):
        if not holds:
            raise ConfigError(f"{rule}.")


def check_field(
    name: str,
    kind: Any,
    value: Any,
    *,
    choices: Mapping[str, tuple[str, ...]] = CHOICES,
    least: int = 1,
    most: float = math.inf,
) -> None:
    """ConfigError for a value that could not be right whatever the others are.

    Args:
        name, kind: of the field of a dataclass.
        choices: the texts that fields of these names may have.
        least: of a whole number; a real number is at least 0. The largest are in config/bounds.py.
        most: of a real number.
    """
    wanted = None
    if name in choices and value not in choices[name]:
        wanted = f"one of {', '.join(choices[name])}"
    elif kind is int and (type(value) is not int or value < least):
        wanted = f"a whole number >= {least}"
    elif kind is float and not (has_type(value, float) and _is_from_zero(value, most)):
        wanted = "a number >= 0" if most == math.inf else f"a number from 0 to {most:g}"
    elif not has_type(value, kind):
        wanted = words_of(kind)
    elif (limit := _limit(name, value)) is not None:
        wanted = limit
    if wanted is not None:
        raise ConfigError(f"{name} is {shorten(value)}; it must be {wanted}.")


def _is_from_zero(value: Any, most: float) -> bool:
    return 0 <= value <= most  # not NaN either


def _limit(name: str, value: Any) -> str | None:
    """The bound of the field that `value`, or an entry of it, passes; None if there is none."""
    entries = value if isinstance(value, tuple) else (value,)
    most = largest(name)
    if any(type(entry) is int and not -most <= entry <= most for entry in entries):
        return f"at most {most}"
    if any(isinstance(entry, float) and abs(entry) > LARGEST_REAL for entry in entries):
        return f"at most {LARGEST_REAL:g}"
    if any(isinstance(entry, str) and len(entry) > MAX_TEXT for entry in entries):
        return f"at most {MAX_TEXT} characters long"
    return None


def replace_fields(
    config: Any, sections: Mapping[str, type], values: Mapping[str, Any], what: str
) -> Any:
    """`config` with fields replaced, each named without the section it is in.

    Args:
        config: a dataclass.
        sections: fields of `config` that are dataclasses themselves, and their types.
        values: by name; lists become tuples.
        what: what a field is called in errors.

    Raises:
        ConfigError: there is no such field, or the values don't fit.
    """
    section_of = {f.name: s for s, kind in sections.items() for f in fields(kind)}
    own = {f.name: f for f in fields(config)}
    changes: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if name in section_of:
            changes.setdefault(section_of[name], {})[name] = value
        elif name in own:
            kind = sections.get(name, object)
            if not isinstance(value, kind):
                raise ConfigError(
                    f"{name} is {shorten(value)}; it must be of type {kind.__name__}."
                )
            top[name] = value
        else:
            hint = did_you_mean(name, [*section_of, *(own.keys() - sections.keys())])
            raise ConfigError(f"there is no {what} {shorten(name)}{hint}")
    for section, replaced in changes.items():
        top[section] = replace(top.get(section, getattr(config, section)), **replaced)
    return replace(config, **top)


def _check_levels(name: str, kind: Any, value: Any) -> None:
    if name.endswith("levels") and kind is not int:
        levels: Any = value
        if not levels or tuple(levels) != tuple(range(levels[0], levels[0] + len(levels))):
            raise ConfigError(
                f"{name} is {shorten(value)}; it must be levels in a row, like (3, 4, 5)."
            )
        if levels[0] < 2:
            raise ConfigError(f"{name} is {shorten(value)}; the lowest level is 2.")


def _rules(config: Any) -> Iterator[tuple[str, bool]]:
    """Rules between fields, each with True if it holds."""
    heads, mask, neck, backbone = config.heads, config.mask, config.neck, config.backbone
    size, stride = config.input, config.mask_feature_stride
    last = neck.neck_in_levels[-1] + neck.neck_extra_levels
    pyramid = set(range(neck.neck_in_levels[0], last + 1))
    for name, levels in (("head_levels", heads.head_levels), ("mask_levels", mask.mask_levels)):
        yield (
            f"{name} {levels} must be levels of the pyramid {sorted(pyramid)}",
            set(levels) <= pyramid,
        )
    yield (
        "sizes_of_interest needs one entry per head level",
        len(heads.sizes_of_interest) == len(heads.head_levels),
    )
    yield (
        "class_names and category_ids need num_classes entries each; with_classes sets all three",
        heads.num_classes == len(config.class_names) == len(config.category_ids),
    )
    yield (
        f"mask_stride {mask.mask_stride} must be the mask features' stride {stride} "
        "divided by 1, 2 or 4",
        stride in (mask.mask_stride, 2 * mask.mask_stride, 4 * mask.mask_stride),
    )
    yield "mask_head_depth must be 1 to 4", mask.mask_head_depth <= 4
    yield (
        "mask_head_width and mask_channels must be at most 16",
        max(mask.mask_head_width, mask.mask_channels) <= 16,
    )
    yield (
        "a mask head without features needs coordinates",
        mask.use_features or mask.coordinates != "none",
    )
    yield from _detect_rules(config.detect)
    yield from _panoptic_rules(config, pyramid)
    yield (
        "a bifpn has three input levels (3, 4, 5) and two extra ones",
        neck.neck_type != "bifpn"
        or (neck.neck_in_levels == (3, 4, 5) and neck.neck_extra_levels == 2),
    )
    yield "size_divisor must be a multiple of 32", size.size_divisor % 32 == 0
    yield (
        "pixel_mean and pixel_std need three numbers each, and pixel_std none that is 0",
        len(size.pixel_mean) == len(size.pixel_std) == 3 and 0 not in size.pixel_std,
    )
    plain = backbone.backbone_type in ("resnet18", "resnet34", "dla34")
    yield (
        f"{backbone.backbone_type} can have neither deformable convolutions nor groups",
        not plain or (not any(backbone.deform_stages) and backbone.groups == 1),
    )
    yield (
        f"neck_in_levels {neck.neck_in_levels} must be levels of the backbone, 2 to 5",
        neck.neck_in_levels[-1] <= 5,
    )
    yield "deform_stages needs four entries, res2 to res5", len(backbone.deform_stages) == 4
    yield (
        f"the configuration asks for about {parameters_at_most(config):.2g} parameters; "
        f"at most {MAX_PARAMETERS:.0e} are built",
        parameters_at_most(config) <= MAX_PARAMETERS,
    )


def _detect_rules(detect: Any) -> Iterator[tuple[str, bool]]:
    yield "max_detections must be at most 512", detect.max_detections <= 512
    yield (
        "mask_nms_candidates must be from max_detections to 512",
        detect.nms == "box" or detect.max_detections <= detect.mask_nms_candidates <= 512,
    )


def _panoptic_rules(config: Any, pyramid: set[int]) -> Iterator[tuple[str, bool]]:
    panoptic = config.panoptic
    names, ids, levels = panoptic.stuff_names, panoptic.stuff_ids, panoptic.semantic_levels
    yield "stuff_names and stuff_ids need as many entries each", len(names) == len(ids)
    yield f"there are {len(names)} kinds of stuff; there may be 254", len(names) <= 254  # uint8
    yield (
        "category_ids and stuff_ids must all differ",
        len({*ids, *config.category_ids}) == len(ids) + len(config.category_ids) or not ids,
    )
    yield (
        f"semantic_levels {levels} must begin at P2 and be levels of the pyramid "
        f"{sorted(pyramid)}; P2 needs neck_in_levels 2, 3, 4, 5",
        not names or (levels[0] == 2 and set(levels) <= pyramid),
    )


_MAY_BE_ZERO = {
    "frozen_stages",
    "neck_extra_levels",
    "share_convs",
    "class_convs",
    "box_convs",
    "mask_branch_convs",
    "stuff_area_limit",
}


class TorchDevice(Protocol):
    """A device of PyTorch; its text is "cpu", "cuda" or "cuda:N"."""

    @property
    def type(self) -> str: ...
    @property
    def index(self) -> int | None: ...


DeviceName = str | TorchDevice


def parse_device(device: DeviceName) -> tuple[str, int]:
    """Kind of `device`, "cpu" or "cuda", and number of the GPU.

    Raises:
        ConfigError: another device.
    """
    match = re.fullmatch(r"cpu|(cuda)(?::([0-9]{1,3}))?", str(device))
    if match is None:
        raise ConfigError(
            f"device is {str(device)!r}; it must be one of cpu, cuda, or cuda:N for GPU N."
        )
    return match[1] or "cpu", int(match[2] or 0)


def check_workers(workers: int) -> None:
    """ConfigError if `workers` is not a whole number from 1."""
    check_whole(workers=workers)


def check_whole(least: int = 1, **values: int) -> None:
    """ConfigError if one of `values` is not a whole number from `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number >= {least}.")


def check_threads(threads: int | None) -> None:
    """ConfigError if `threads` is not None or a whole number from 1."""
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads is {threads!r}; it must be a whole number >= 1.")
