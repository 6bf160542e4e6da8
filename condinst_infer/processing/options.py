"""What a pipeline makes of a runner's outputs, one image at a time."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar

from condinst_infer.config.model import CondInstConfig, PanopticConfig, override
from condinst_infer.errors import ConfigError
from condinst_infer.processing.geometry import Placed
from condinst_infer.processing.panoptic import panoptic_from_outputs
from condinst_infer.processing.postprocess import (
    Classes,
    Found,
    check_options,
    instances_from_outputs,
    labels_from_classes,
)
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation

Result = TypeVar("Result")
Finish = Callable[[Found, int, Placed, CondInstConfig], Result]  # of one slot of a batch


class Thresholds(TypedDict, total=False):
    """Those of a panoptic segmentation; None is the model's."""

    instance_threshold: float | None
    overlap_threshold: float | None
    stuff_area_limit: int | None


def call_options(
    config: CondInstConfig,
    score_threshold: float | None,
    max_detections: int | None,
    classes: Classes | None,
) -> dict[str, Any]:
    """The options of a call, refused before seconds of work; ConfigError if out of range."""
    check_options(config, score_threshold, max_detections)
    labels = None if classes is None else labels_from_classes(classes, config.class_names)
    return {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "classes": labels,
    }


def panoptic_settings(config: CondInstConfig, **thresholds: float | None) -> PanopticConfig:
    """`config.panoptic` with those of `thresholds` that are given.

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
    check_options(config, settings.instance_threshold, None)
    return settings


def instances(
    found: Found, slot: int, placed: Placed, config: CondInstConfig, options: Mapping[str, Any]
) -> Instances:
    return instances_from_outputs(
        found.outputs,
        slot,
        net_size=placed.net_size,
        image=placed.image,
        config=config,
        crops=None if found.crops is None else found.crops[slot],
        on_device=None if found.on_device is None else found.on_device[slot],
        **options,
    )


def panoptic(
    found: Found, slot: int, placed: Placed, config: CondInstConfig, settings: PanopticConfig
) -> PanopticSegmentation:
    return panoptic_from_outputs(
        found.outputs,
        slot,
        net_size=placed.net_size,
        image=placed.image,
        config=config,
        settings=settings,
        crops=None if found.crops is None else found.crops[slot],
        owners=None if found.owners is None else found.owners[slot],
    )
