"""Crops from the bits that the `paste` kernel of engines/src writes, on the host."""

import numpy as np

from condinst_infer.errors import SessionError
from condinst_infer.results.crop import CroppedMask

_WORD = 32  # pixels
_FULL_MASKS = 16  # what the boxes of a crowded photograph add up to, small ones padded to words


def words_expected(k: int, image_size: tuple[int, int]) -> int:
    """A first guess of how many words the bits of `k` instances need; the kernel tells the number.

    Args:
        image_size: (height, width) of the original image.
    """
    height, width = image_size
    return min(k, _FULL_MASKS) * height * -(-width // _WORD)


def crops_from_bits(crops: np.ndarray, bits: np.ndarray) -> list[CroppedMask]:
    """K masks, views of one array; they may have background around their foreground.

    Args:
        crops: int32 [K, 5] as `mask_boxes` writes them: x, y, width, height, first word.
        bits: uint32 [words] as `paste` writes them, on a little-endian machine as all that CUDA
            runs on are.

    Raises:
        SessionError: a crop has no place in `bits`.
    """
    flat = np.unpackbits(bits.view(np.uint8), bitorder="little").view(bool)
    found = []
    for x, y, width, height, offset in crops.tolist():
        row = -(-width // _WORD) * _WORD
        start = offset * _WORD
        if offset < 0 or start + height * row > len(flat):
            raise SessionError(
                f"a mask of {width} x {height} pixels has no place in {len(bits)} words: the image "
                "is too large to paste on a GPU. Run it on the CPU: device='cpu'"
            )
        mask = flat[start : start + height * row].reshape(height, row)[:, :width]
        found.append(CroppedMask(x, y, mask))
    return found
