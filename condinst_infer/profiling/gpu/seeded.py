"""Inputs of the checks: the same bits on every machine and with every version of numpy.

Only a bit generator's raw numbers are promised to stay, and only operations that IEEE 754 rounds
are used on them: no exponential, no sine. Values are multiples of 1/64, which float16 holds too.
"""

import numpy as np

STEP = 64  # of values that float16 holds exactly


class Seeded:
    """A stream of numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """Whole numbers in [low, high), int64."""
        raw = self._bits.random_raw(shape) >> np.uint64(11)
        return low + (raw % np.uint64(high - low)).astype(np.int64)

    def steps(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        """Multiples of 1/64 in [low, high), float32."""
        whole = self.integers(round(low * STEP), round(high * STEP), shape)
        return (whole / STEP).astype(np.float32)

    def permutation(self, n: int) -> np.ndarray:
        """The numbers below n in some order, int64."""
        return np.argsort(self._bits.random_raw(n), kind="stable")


def blobs(seed: int, count: int, cells: tuple[int, int]) -> np.ndarray:
    """Probabilities float32 [count, *cells] of soft ellipses; some empty, some cells exactly 0.5.

    They are multiples of 1/1024, which float16 holds exactly.
    """
    random, (h, w) = Seeded(seed), cells
    y, x = np.mgrid[:h, :w]
    masks = np.zeros((count, h, w), np.float32)
    middle = random.integers(0, 64, (count, 2)) * [h, w] // 64
    radius = 1 + random.integers(1, 64, (count, 2)) ** 2 * [h, w] // (64 * 160)  # most are small
    noise = random.integers(-90, 91, (count, h, w))
    for i, ((cy, cx), (ry, rx)) in enumerate(zip(middle, radius, strict=True)):
        # 512 on the ellipse, more inside: in whole numbers, so that nothing is rounded
        inside = 512 * ((ry * rx) ** 2 - ((y - cy) * rx) ** 2 - ((x - cx) * ry) ** 2)
        masks[i] = np.clip(512 + inside // (ry * rx) ** 2 + noise[i], 0, 1024) / 1024
    masks[3::7] = np.minimum(masks[3::7], np.float32(0.5))  # 0.5 is background
    return masks


def regions(seed: int, classes: int, cells: tuple[int, int]) -> np.ndarray:
    """Logits float32 [classes, *cells]: regions of some 8 cells with rough borders."""
    random, (h, w) = Seeded(seed), cells
    coarse = random.integers(-300, 301, (classes, h // 8 + 2, w // 8 + 2))
    (row, down), (column, across) = (np.divmod(np.arange(side), 8) for side in cells)
    upper, lower = coarse[:, row], coarse[:, row + 1]  # [classes, h, w / 8]
    lines = upper * (8 - down)[:, None] + lower * down[:, None]
    smooth = lines[:, :, column] * (8 - across) + lines[:, :, column + 1] * across
    whole = smooth // 64 + random.integers(-12, 13, (classes, h, w))
    return np.ascontiguousarray(whole / STEP, np.float32)


def packed(pixels: np.ndarray) -> np.ndarray:
    """Words uint32 [..., ceil(n / 32)] of bools [..., n], the lowest bit first."""
    room = -pixels.shape[-1] % 32
    wide = np.concatenate([pixels, np.zeros((*pixels.shape[:-1], room), bool)], -1)
    return np.packbits(wide, axis=-1, bitorder="little").view("<u4")


def unpacked(words: np.ndarray) -> np.ndarray:
    """Bools [..., 32 * n] of uint32 [..., n], the lowest bit first."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    return bits.view(bool)
