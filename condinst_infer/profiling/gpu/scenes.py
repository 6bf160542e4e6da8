"""Masks, logits and tensors that kernels are timed on; only what makes tensors imports torch."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.profiling.gpu.timing import is_emulated
from condinst_infer.results.crop import CroppedMask

if TYPE_CHECKING:
    import torch

NET_SIZE, IMAGE_SIZE, STRIDE, CELLS = (800, 1088), (480, 640), 4, (200, 272)


AREAS = (40, 100_000)  # original pixels, log-uniform: from a distant bottle to a bus


def mask_scene(
    count: int,
    cells: tuple[int, int] = CELLS,
    image_size: tuple[int, int] = IMAGE_SIZE,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities float32 [count, *cells] of elliptic objects with wavy, soft borders."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: cells[0], : cells[1]].astype(np.float32)
    pixels = image_size[0] * image_size[1]
    pixels_per_cell = pixels / (cells[0] * cells[1])
    masks = np.empty((count, *cells), dtype=np.float32)
    for mask in masks:
        area = np.exp(random.uniform(*np.log((AREAS[0], min(AREAS[1], pixels))))) / pixels_per_cell
        aspect = np.exp(random.uniform(-0.7, 0.7))
        ry, rx = np.sqrt(area / np.pi * aspect), np.sqrt(area / np.pi / aspect)
        # Most of it inside the picture, so that areas are what AREAS says.
        cy = random.uniform(min(ry, cells[0] / 2), max(cells[0] - ry, cells[0] / 2))
        cx = random.uniform(min(rx, cells[1] / 2), max(cells[1] - rx, cells[1] / 2))
        dy, dx = (y - cy) / ry, (x - cx) / rx
        wave = 1 + 0.1 * np.sin(5 * np.arctan2(dy, dx) + random.uniform(0, 6))
        distance = (wave - np.hypot(dy, dx)) * np.sqrt(ry * rx)  # cells, positive inside
        mask[:] = 1 / (1 + np.exp(np.clip(-2 * distance, -30, 30)))
    return masks


def torch_probabilities(
    masks: "torch.Tensor",
    stride: int = STRIDE,
    net_size: tuple[int, int] = NET_SIZE,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> "torch.Tensor":
    """Native-size probabilities [K, H, W] by pad, interpolate, crop and interpolate."""
    from torch.nn.functional import interpolate, pad

    height, width = masks.shape[1:]
    x = pad(masks[:, None], (0, 1, 0, 1), mode="replicate")
    size = (height * stride + 1, width * stride + 1)
    x = interpolate(x, size=size, mode="bilinear", align_corners=True)
    x = pad(x, (stride // 2, 0, stride // 2, 0), mode="replicate")
    x = x[..., : net_size[0], : net_size[1]]
    return interpolate(x, size=image_size, mode="bilinear", align_corners=False)[:, 0]


def dense(crops: list[CroppedMask], image_size: tuple[int, int] = IMAGE_SIZE) -> np.ndarray:
    """Boolean masks [K, H, W]."""
    masks = np.zeros((len(crops), *image_size), dtype=bool)
    for mask, crop in zip(masks, crops, strict=True):
        height, width = crop.mask.shape
        mask[crop.y : crop.y + height, crop.x : crop.x + width] = crop.mask
    return masks


CLASSES, REGIONS = 54, (6, 8)


def stuff_scene(
    noise: bool = False,
    cells: tuple[int, int] = CELLS,
    classes: int = CLASSES,
    seed: int = 0,
) -> np.ndarray:
    """Logits float32 [classes, *cells]: regions with wavy borders, or noise."""
    random = np.random.default_rng(seed)
    if noise:
        return random.standard_normal((classes, *cells), dtype=np.float32)
    coarse, fine = (
        random.standard_normal((classes, *(n * side for side in REGIONS)), dtype=np.float32)
        for n in (1, 4)
    )
    return np.stack(
        [
            5 * cv2.resize(a, cells[::-1], interpolation=cv2.INTER_CUBIC)
            + 0.5 * cv2.resize(b, cells[::-1], interpolation=cv2.INTER_CUBIC)
            for a, b in zip(coarse, fine, strict=True)
        ]
    )


def torch_place(device: Device) -> "torch.device":
    """PyTorch's word for `device`; the CPU for the emulated one, whose memory is the host's.

    Raises:
        SessionError: PyTorch can't use this GPU.
    """
    import torch

    from condinst_infer.runtimes.pytorch_cuda import cuda_place

    return torch.device("cpu") if is_emulated(device) else cuda_place(device.index)


def tensor_from(array: DeviceArray) -> "torch.Tensor":
    """`array` as a tensor on its device, not a copy.

    Raises:
        SessionError: PyTorch can't use the GPU it is on.
    """
    from condinst_infer.runtimes.pytorch_cuda import tensor_from_array

    return tensor_from_array(array, torch_place(array.owner.device))
