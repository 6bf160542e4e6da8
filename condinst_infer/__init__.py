"""CondInst instance segmentation: from a checkpoint to masks, on any runtime.

import condinst_infer as ci

pipeline = ci.load("model.onnx")
result = pipeline("street.jpg")
result.boxes, result.scores, result.names, result.masks
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condinst_infer.config.model import (
        BackboneConfig,
        CondInstConfig,
        DetectConfig,
        HeadsConfig,
        InputConfig,
        MaskConfig,
        NeckConfig,
        PanopticConfig,
        override,
        with_classes,
    )
    from condinst_infer.config.presets import preset, preset_names
    from condinst_infer.contract.metadata import Metadata
    from condinst_infer.errors import (
        CheckpointError,
        CondInstError,
        ConfigError,
        InputError,
        MissingExtraError,
        ModelFileError,
        ParityError,
        SessionError,
        TrainingError,
    )
    from condinst_infer.pipeline import Pipeline, load
    from condinst_infer.results.crop import CroppedMask
    from condinst_infer.results.instances import Instance, Instances
    from condinst_infer.results.panoptic import PanopticSegment, PanopticSegmentation
    from condinst_infer.results.polygons import Polygon
    from condinst_infer.video.sources import Frame
    from condinst_infer.video.stream import FrameStream

__version__ = "0.1.0"

# Since 1.31 ONNX Runtime reports to its makers unless told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "BackboneConfig",
    "CheckpointError",
    "CondInstConfig",
    "CondInstError",
    "ConfigError",
    "CroppedMask",
    "DetectConfig",
    "Frame",
    "FrameStream",
    "HeadsConfig",
    "InputConfig",
    "InputError",
    "Instance",
    "Instances",
    "MaskConfig",
    "Metadata",
    "MissingExtraError",
    "ModelFileError",
    "NeckConfig",
    "PanopticConfig",
    "PanopticSegment",
    "PanopticSegmentation",
    "ParityError",
    "Pipeline",
    "Polygon",
    "SessionError",
    "TrainingError",
    "__version__",
    "load",
    "override",
    "preset",
    "preset_names",
    "with_classes",
]

# Loaded when first asked for, so that each program loads what it uses.
_LAZY = {
    "BackboneConfig": "condinst_infer.config.model",
    "CheckpointError": "condinst_infer.errors",
    "CondInstConfig": "condinst_infer.config.model",
    "CondInstError": "condinst_infer.errors",
    "ConfigError": "condinst_infer.errors",
    "CroppedMask": "condinst_infer.results.crop",
    "DetectConfig": "condinst_infer.config.model",
    "Frame": "condinst_infer.video.sources",
    "FrameStream": "condinst_infer.video.stream",
    "HeadsConfig": "condinst_infer.config.model",
    "InputConfig": "condinst_infer.config.model",
    "InputError": "condinst_infer.errors",
    "Instance": "condinst_infer.results.instances",
    "Instances": "condinst_infer.results.instances",
    "MaskConfig": "condinst_infer.config.model",
    "Metadata": "condinst_infer.contract.metadata",
    "MissingExtraError": "condinst_infer.errors",
    "ModelFileError": "condinst_infer.errors",
    "NeckConfig": "condinst_infer.config.model",
    "PanopticConfig": "condinst_infer.config.model",
    "PanopticSegment": "condinst_infer.results.panoptic",
    "PanopticSegmentation": "condinst_infer.results.panoptic",
    "ParityError": "condinst_infer.errors",
    "Pipeline": "condinst_infer.pipeline",
    "Polygon": "condinst_infer.results.polygons",
    "SessionError": "condinst_infer.errors",
    "TrainingError": "condinst_infer.errors",
    "load": "condinst_infer.pipeline",
    "override": "condinst_infer.config.model",
    "preset": "condinst_infer.config.presets",
    "preset_names": "condinst_infer.config.presets",
    "with_classes": "condinst_infer.config.model",
}

if not TYPE_CHECKING:  # to a type checker it would make every misspelt name an Any

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
