"""Copies from the device to the host: boxes, scores, labels and packed masks."""

from math import prod

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from condinst_infer.processing.postprocess import not_finite
from condinst_infer.results.crop import CroppedMask

_WORD = 32  # pixels
_FULL_MASKS = 16  # what the boxes of a crowded photograph add up to, small ones padded to words

_ALIGNMENT = 256  # bytes; what TensorRT wants of an address
REPORTED = ("num_detections", "boxes", "scores", "labels")
_FIRST_WORDS = 1 << 16  # 256 KB of mask bits come with the first copy, the rest if there is one


class HostCopy:
    """One piece of device memory with all results, and the host memory it is copied to."""

    def __init__(self, stream: Stream, n: int, k: int, capacity: int) -> None:
        self._stream, self.capacity = stream, capacity
        shapes = {
            "num_detections": ((n,), np.int32),
            "boxes": ((n, k, 4), np.float32),
            "scores": ((n, k), np.float32),
            "labels": ((n, k), np.int32),
            "crops": ((n, k, kernels.CROP_FIELDS), np.int32),
            "used": ((1,), np.int32),
            "bits": ((capacity,), np.uint32),
        }
        places, size = {}, 0
        for name, (shape, kind) in shapes.items():
            places[name] = size
            size += -(-prod(shape) * np.dtype(kind).itemsize // _ALIGNMENT) * _ALIGNMENT
        self._memory = stream.empty((size,), np.uint8)
        self._arrays = {
            name: self._memory.view(shape, kind, places[name])
            for name, (shape, kind) in shapes.items()
        }
        self._first = min(capacity, _FIRST_WORDS)
        self._host = stream.allocate_pinned((places["bits"] + 4 * self._first,), np.uint8)
        shapes["bits"] = ((self._first,), np.uint32)
        self._copied = {
            name: np.ndarray(shape, kind, self._host, places[name])
            for name, (shape, kind) in shapes.items()
        }

    def __getitem__(self, name: str) -> DeviceArray:
        return self._arrays[name]

    def fetch(self) -> None:
        """Put the copy to the host on the stream."""
        self._stream.download(self._host, self._memory.view(self._host.shape))

    def wait(self) -> int:
        """Wait for it; how many words the masks need, which may be more than there is room for."""
        self._stream.synchronize()
        return int(self._copied["used"][0])

    def contents(self, used: int, n: int) -> tuple[dict[str, np.ndarray], list[list[CroppedMask]]]:
        """Copies of the first `n` images' outputs, and their masks of `used` words."""
        if used > self._first:
            bits = self._stream.numpy(self["bits"].view((used,)))
        else:
            bits = self._copied["bits"][:used].copy()  # the next batch overwrites the host memory
        outputs = {name: self._copied[name][:n].copy() for name in REPORTED}
        slots = self._copied["crops"][:n]
        crops = crops_from_bits(slots.reshape(-1, kernels.CROP_FIELDS), bits)
        each = slots.shape[1]
        return outputs, [crops[i * each : (i + 1) * each] for i in range(n)]

    def close(self) -> None:
        self._stream.free(self._memory)
        self._stream.free_pinned(self._host)


def expected_words(k: int, image_size: tuple[int, int]) -> int:
    """A first guess of how many words the bits of `k` instances need; the kernel tells the number.

    Args:
        image_size: (height, width) of the original image.
    """
    height, width = image_size
    return min(k, _FULL_MASKS) * height * -(-width // _WORD)


def crops_from_bits(crops: np.ndarray, bits: np.ndarray) -> list[CroppedMask]:
    """K masks, packed as `bits` are and views of them; background may surround the foreground.

    Args:
        crops: int32 [K, 5] as `mask_boxes` writes them: x, y, width, height, first word.
        bits: uint32 [words] as `paste` writes them, on a little-endian machine as all that CUDA
            runs on are; the masks keep them. Beyond the width of a row they are 0.

    Raises:
        SessionError: a mask holds NaN, or a crop has no place in `bits`.
    """
    flat = bits.view(np.uint8)
    found = []
    for x, y, width, height, offset in crops.tolist():
        if (width, height, offset) == (-1, -1, -1):  # as `mask_boxes` says it
            raise not_finite("masks")
        row = -(-width // _WORD) * 4  # bytes
        start = offset * 4
        if min(width, height, offset) < 0 or start + height * row > len(flat):
            raise SessionError(
                f"a mask of {width} x {height} pixels has no place in {len(bits)} words: the image "
                "is too large to paste on a GPU. Run it on the CPU: device='cpu'"
            )
        rows = flat[start : start + height * row].reshape(height, row)
        found.append(CroppedMask.from_bits(x, y, rows, width))
    return found
