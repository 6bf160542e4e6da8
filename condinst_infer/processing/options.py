"""Options of a call of the pipeline, checked once for the loaded model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from condinst_infer.config.class_names import labels_from_classes
from condinst_infer.config.model import CondInstConfig, PanopticConfig, override
from condinst_infer.errors import ConfigError

_INDEX = re.compile("[0-9]{1,9}")  # `int` and `str.isdigit` know the digits of other scripts
Classes = int | str | Sequence[int | str]


class Thresholds(TypedDict, total=False):
    """Optional thresholds of `Pipeline.panoptic`; None uses the model's own."""

    instance_threshold: float | None
    overlap_threshold: float | None
    stuff_area_limit: int | None


@dataclass(frozen=True)
class Filter:
    """The instances of an image that are reported; made by `filter_for`."""

    score_threshold: float | None = None  # lowest reported score; None keeps all
    max_detections: int | None = None  # most instances, best first; None keeps all
    labels: tuple[int, ...] | None = None  # class indices; None keeps all


def filter_for(
    config: CondInstConfig,
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    classes: Classes | None = None,
) -> Filter:
    """The filter with these options for a model with this config.

    Args:
        score_threshold: 0 to 1, at least the lowest score the model reports.
        max_detections: at least 1.
        classes: class names or indices.

    Raises:
        ConfigError: an option is out of range, or below what the model reports.
    """
    check_score_threshold(score_threshold, config)
    whole = isinstance(max_detections, (int, np.integer))
    if max_detections is not None and (not whole or max_detections < 1):
        raise ConfigError(f"max_detections is {max_detections}; it must be a whole number >= 1.")
    labels = None if classes is None else labels_from_classes(classes, config.class_names)
    return Filter(score_threshold, max_detections, labels)


def panoptic_settings(config: CondInstConfig, **thresholds: float | None) -> PanopticConfig:
    """`config.panoptic` with those of `thresholds` that are not None.

    Raises:
        ConfigError: the model has no semantic branch, or a threshold is out of range.
    """
    if not config.is_panoptic:
        raise ConfigError(
            f"{config.name} finds instances alone: it has no semantic branch. "
            "Panoptic models: condinst presets"
        )
    given = {name: value for name, value in thresholds.items() if value is not None}
    settings = override(config, **given).panoptic
    check_score_threshold(settings.instance_threshold, config, "instance_threshold")
    return settings


def check_score_threshold(
    score_threshold: float | None, config: CondInstConfig, name: str = "score_threshold"
) -> None:
    """ConfigError for a score threshold that this model can't honour; `name` is for messages."""
    if score_threshold is None:
        return
    if not 0 <= score_threshold <= 1:  # also refuses NaN
        raise ConfigError(f"{name} is {score_threshold}; it must be from 0 to 1.")
    floor = config.reported_floor
    if score_threshold < floor - 1e-6:  # a floor copied from a message has six digits
        raise ConfigError(
            f"{name} {score_threshold} is below {floor:.6f}, the lowest score this "
            "model reports. Export it again with a lower --score-threshold: "
            "condinst export MODEL.safetensors -o MODEL.onnx --score-threshold T"
        )


def classes_from_text(text: str) -> list[int | str]:
    """Class names and indices from "person,2"; an index has at most nine digits of ASCII.

    Raises:
        ConfigError: there is none.
    """
    names = [name.strip() for name in text.split(",")]
    classes = [int(name) if _INDEX.fullmatch(name) else name for name in names if name]
    if not classes:
        raise ConfigError(f"classes is {text[:60]!r}; give names or numbers, such as person,2.")
    return classes
