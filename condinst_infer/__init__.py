"""CondInst instance segmentation: from a checkpoint to masks, on any runtime.

import condinst_infer as ci

pipeline = ci.load("model.onnx")
result = pipeline("street.jpg")
result.boxes, result.scores, result.names, result.masks
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

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
)
from condinst_infer.config.presets import names as preset_names
from condinst_infer.config.presets import preset
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

if TYPE_CHECKING:
    from condinst_infer.pipeline import Pipeline, load
    from condinst_infer.results.crop import CroppedMask
    from condinst_infer.results.instances import Instances
    from condinst_infer.results.panoptic import PanopticSegment, PanopticSegmentation
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
    "SessionError",
    "TrainingError",
    "__version__",
    "load",
    "override",
    "preset",
    "preset_names",
]

# Loaded when first asked for: OpenCV and Pillow cost more than all the rest.
_LAZY = {
    "CroppedMask": "condinst_infer.results.crop",
    "Frame": "condinst_infer.video.sources",
    "FrameStream": "condinst_infer.video.stream",
    "Instances": "condinst_infer.results.instances",
    "PanopticSegment": "condinst_infer.results.panoptic",
    "PanopticSegmentation": "condinst_infer.results.panoptic",
    "Pipeline": "condinst_infer.pipeline",
    "load": "condinst_infer.pipeline",
}

if not TYPE_CHECKING:  # to a type checker it would make every misspelt name an Any

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
