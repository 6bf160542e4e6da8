"""A stand-in for torchvision, where it is missing, with what the rivals of rivals.py call."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_NAME, _VERSION = "torchvision", "0.28.0"  # what goes with torch 2.13


def stand_in() -> None:
    """Make `import torchvision` work; does nothing where it does."""
    if importlib.util.find_spec(_NAME) is not None:
        return
    # transformers looks for it when it is imported, and would take more of it than there is
    for module in ("transformers.modeling_utils", "transformers.image_utils"):
        if importlib.util.find_spec("transformers") is not None:
            importlib.import_module(module)
    sys.meta_path.insert(0, _Finder())
    real = importlib.metadata.version
    importlib.metadata.version = lambda name: _VERSION if name == _NAME else real(name)
    transforms = importlib.import_module("torchvision.transforms.functional")
    vars(transforms).update(resize=_resize, normalize=_normalize)
    vars(importlib.import_module("torchvision.ops")).update(nms=_nms)


class _Module(types.ModuleType):
    """A package that has every module and every class; the classes do nothing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != _NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        vars(module)["__version__"] = _VERSION
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to do."""


def _resize(image: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    assert not antialias
    return functional.interpolate(image[None], size=tuple(size), mode="bilinear")[0]


def _normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).numpy()
    keep = cv2.dnn.NMSBoxes(corners, scores.numpy(), 0.0, iou_threshold)  # pyright: ignore
    return torch.from_numpy(np.asarray(keep, np.int64).reshape(-1))
