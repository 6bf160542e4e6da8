"""Arrays in device memory, ours and other libraries', without copies."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from condinst_infer.errors import InputError


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array in device memory, valid until its stream is closed.

    It has `__cuda_array_interface__`: torch.as_tensor, cupy.asarray and PyCUDA take it as it is.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any = field(repr=False, default=None)  # keeps the memory alive

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: int) -> "DeviceArray":
        """Entry `index` of the first axis, not a copy."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"entry {index} of {self.shape[0]}")
        step = prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.pointer + index * step, self.shape[1:], self.dtype, self.owner)

    def view(self, shape: Sequence[int], dtype: Any = None, offset_bytes: int = 0) -> "DeviceArray":
        """A part of this memory as an array of another shape."""
        kind = np.dtype(self.dtype if dtype is None else dtype)
        if offset_bytes + prod(shape) * kind.itemsize > self.nbytes:
            raise ValueError(f"a view of {kind} {shape} at {offset_bytes} in {self.nbytes} bytes")
        return DeviceArray(self.pointer + offset_bytes, tuple(shape), kind, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": None,  # every call that hands arrays out has synchronised
        }


def device_array(source: Any, name: str) -> tuple[DeviceArray, int]:
    """`source`, uint8 [H, W, 3] in device memory, and its bytes per row; nothing is copied.

    Args:
        source: anything with `__cuda_array_interface__`; rows may be apart, pixels may not.

    Raises:
        InputError: another type, shape or layout.
    """
    try:
        said = source.__cuda_array_interface__
    except (RuntimeError, AttributeError) as error:  # PyTorch: with a gradient, or sparse
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"{name} can't be used as an array of the GPU: {reason}.") from None
    shape, kind = tuple(said["shape"]), np.dtype(said["typestr"])
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"{name} is {kind} {list(shape)}; it must be BGR uint8 [H, W, 3].")
    strides = said.get("strides") or (shape[1] * 3, 3, 1)
    if strides[1:] != (3, 1) or strides[0] < shape[1] * 3:
        raise InputError(f"{name} has strides {strides}; the pixels of a row must be contiguous.")
    return DeviceArray(said["data"][0], shape, kind, source), strides[0]
