"""Tensors of PyTorch as arrays, and the sentences about arrays and objects that are no image."""

from typing import Any

import numpy as np

from condinst_infer.errors import InputError

_ROUNDING = 1e-3  # what resampling leaves above 1 or below 0


def array_from_tensor(tensor: Any) -> np.ndarray:
    """A tensor of PyTorch in host memory as uint8 [H, W], [H, W, C]; pixels are not copied.

    Args:
        tensor: uint8, [H, W, 3] or another shape that an image array has; or [3, H, W].

    Raises:
        InputError: another type, place or shape, or one with 3 at both ends.
    """
    if tensor.is_cuda:
        raise InputError(
            f"the image is a tensor on {tensor.device} and the model runs on the CPU. "
            "Copy it: image.cpu()"
        )
    if str(tensor.dtype) != "torch.uint8":
        raise not_uint8(tensor)
    try:
        array = tensor.detach().cpu().numpy()
    except (RuntimeError, TypeError) as error:  # sparse, or on the device "meta"
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(f"the tensor can't become an array: {reason}.") from None
    if array.ndim != 3 or array.shape[0] != 3:
        return array
    if array.shape[2] == 3:
        raise InputError(
            f"the tensor has shape {list(array.shape)}, so its first or its last axis may be the "
            "channels. Permute it until one of them is not 3: image.permute(1, 2, 0) if the first "
            "axis is the channels, image.permute(2, 0, 1) if the last is"
        )
    return array.transpose(1, 2, 0)  # [H, W, 3]


def not_uint8(image: Any) -> InputError:
    """The error for an array or a tensor of another type, with the line that converts it."""
    if isinstance(image, np.ndarray):
        name, kind, cast = "the image array", str(image.dtype), "astype(np.uint8)"
        values = image if image.dtype.kind in "fiub" else None
    else:
        name, kind, cast = "the image tensor", str(image.dtype), "to(torch.uint8)"
        kind = kind.removeprefix("torch.")
        values = None if image.is_complex() or image.is_quantized else image.detach().double()
    is_float = kind.startswith(("float", "bfloat"))
    range_ = None if values is None else _range(values)
    what, advice = "", ""
    if range_ is None:
        pass
    elif not np.isfinite(range_).all():
        what = " and holds values that are not finite"
    elif range_[0] < -_ROUNDING or (is_float and range_[1] > 255 + _ROUNDING):
        what = " with values from {:.4g} to {:.4g}".format(*range_)
        advice = " Give the image as it was before it was normalized."
    else:
        advice = f" Convert it: {_scaled(kind, range_[1], is_float)}.{cast}"
    return InputError(f"{name} is {kind}{what}; it must be uint8 with values 0 to 255.{advice}")


def _scaled(kind: str, most: float, is_float: bool) -> str:
    """The Python expression that brings `image`, whose largest value is `most`, to 0 to 255."""
    if kind == "bool":
        return "(image * 255)"
    if is_float:
        return "(image * 255).round()" if most <= 1 + _ROUNDING else "image.round()"
    if most <= 255:
        return "image"
    return f"(image / {257 if most <= 65535 else round(most / 255)}).round()"


def _range(values: Any) -> tuple[float, float] | None:
    """The least and the largest value, where there are any that can be looked at."""
    try:
        return float(values.min()), float(values.max())
    except (RuntimeError, TypeError, ValueError):  # none at all, sparse, or on the device "meta"
        return None


def no_image_shape(shape: tuple[int, ...]) -> InputError:
    """The error for an array of a shape that no image has."""
    hint = ""
    if len(shape) == 4:
        hint = " Give an array of several images alone, not within a list."
    elif len(shape) == 3 and shape[0] in (1, 3, 4):
        hint = " Bring the channels to the end: image.transpose(1, 2, 0)"
    return InputError(
        f"the image array has shape {shape}; it must be [H, W, 3] (BGR), [H, W, 4] (BGRA), "
        f"[H, W, 1] or [H, W] (grey).{hint}"
    )


def no_image(source: object) -> InputError:
    """The error for an object that is no source of an image."""
    if hasattr(source, "__cuda_array_interface__"):
        return InputError(
            f"the image is a {type(source).__name__} in the memory of a GPU and the model runs on "
            "the CPU; copy it to a numpy array."
        )
    return InputError(
        f"the image is a {type(source).__name__}; give a path, the bytes of an image file, an open "
        "file, a BGR uint8 array [H, W, 3] or a Pillow image."
    )
