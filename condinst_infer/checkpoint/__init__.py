"""Weights and configurations in and out of files."""

from condinst_infer.checkpoint.adelaidet import model_from_adelaidet
from condinst_infer.checkpoint.adelaidet_config import config_from_adelaidet
from condinst_infer.checkpoint.files import (
    import_weights,
    is_ours,
    load,
    read_tensors,
    save,
    weights_match,
)
from condinst_infer.checkpoint.imagenet import ImageNetBackbone, backbone_from_imagenet
from condinst_infer.checkpoint.mmdet import config_from_mmdet, model_from_mmdet
from condinst_infer.checkpoint.torch_files import DamagedFileError, load_torch_file

__all__ = [
    "DamagedFileError",
    "ImageNetBackbone",
    "backbone_from_imagenet",
    "config_from_adelaidet",
    "config_from_mmdet",
    "import_weights",
    "is_ours",
    "load",
    "load_torch_file",
    "model_from_adelaidet",
    "model_from_mmdet",
    "read_tensors",
    "save",
    "weights_match",
]
