"""Bytes moved and operations computed by each kernel, to compare measured times with.

Bytes are what must cross the memory bus once; what a cache serves again is not counted. Operations
are float32 multiplications and additions, two for a multiply-add; comparisons of NMS count ten.
"""

from typing import NamedTuple

from condinst_infer.config.model import mask_layers

PAPER_HEAD = {
    "depth": 3,
    "width": 8,
    "channels": 8,
    "coordinates": "relative",
    "use_features": True,
}


class KernelCost(NamedTuple):
    """Cost of one launch."""

    bytes: int
    operations: int


def class_nms(n: int, m: int, k: int) -> KernelCost:
    """At most: every candidate is tested against every kept one."""
    return KernelCost(n * (m * 24 + 4 * (k + 1)), n * m * k * 10)


def mask_nms(n: int, c: int, k: int, cells: int, item: int) -> KernelCost:
    """`mask_bits`, `mask_ious` and `mask_nms`: a word of 32 cells of a pair counts as three."""
    pairs = n * c * c // 2
    moved = n * (c * cells * item + c * cells // 4 + 6 * c * c + 8 * k)
    return KernelCost(moved, pairs * (3 * cells // 32 + 3))


def select(n: int, k: int, p: int, item: int) -> KernelCost:
    return KernelCost(n * k * (2 * p * item + 2 * 24 + 12 + 8), n * k)


def dynamic_mask_head(
    n: int, k: int, h: int, w: int, factor: int, item: int, slots: int | None = None
) -> KernelCost:
    """The papers' head; tiles compute their halo again, about a sixth more for factor 2.

    `k` instances in `slots`, or in as many: the other slots are filled with zeros.
    """
    layers = mask_layers(**PAPER_HEAD)
    params = sum(o * i + o for o, i in layers)
    outputs = n * k * h * w * factor * factor
    written = n * (k if slots is None else slots) * h * w * factor * factor
    moved = n * (8 * h * w + k * params) * item + written * item
    return KernelCost(moved, n * k * h * w * 2 * sum(o * i for o, i in layers) + outputs * 12)


def preprocess(
    size: tuple[int, int], net_size: tuple[int, int], canvas: tuple[int, int]
) -> KernelCost:
    taps = 1
    for side, net in zip(size, net_size, strict=True):
        taps *= 2 * max(1, -(-side // net))
    pixels = canvas[0] * canvas[1]
    return KernelCost(3 * (size[0] * size[1] + pixels), net_size[0] * net_size[1] * taps * 3 * 2)


def paste(k: int, shape: tuple[int, int], box_pixels: int, item: int) -> KernelCost:
    """`mask_boxes` and `paste`; `box_pixels` is the area of all crops in the original image."""
    cells = k * shape[0] * shape[1]
    return KernelCost(cells * item + box_pixels // 8, cells + box_pixels * 9)


def panoptic(
    classes: int, shape: tuple[int, int], image_size: tuple[int, int], box_pixels: int
) -> KernelCost:
    """Owners of all pixels, half of them stuff, of float16 logits; `box_pixels` as in `paste`.

    The logits are read once; a free pixel has nine cells of each class to add.
    """
    pixels = image_size[0] * image_size[1]
    cells = classes * shape[0] * shape[1]
    return KernelCost(cells * 2 + box_pixels // 4 + pixels * 8, pixels // 2 * classes * 18)


def table() -> str:
    """Markdown: the work at the sizes of the figures to reach."""
    cases = {
        "`class_nms`, 1 image, 5000 candidates to 100": class_nms(1, 5000, 100),
        "`mask_nms`, 300 masks 64x88 to 100, float16": mask_nms(1, 300, 100, 64 * 88, 2),
        "`select`, 100 instances, float16": select(1, 100, 169, 2),
        "`dynamic_mask_head`, 100 instances, 64x88, float16": dynamic_mask_head(
            1, 100, 64, 88, 2, 2
        ),
        "`dynamic_mask_head`, 100 instances, 100x168, float16": dynamic_mask_head(
            1, 100, 100, 168, 2, 2
        ),
        "`preprocess`, 1080x1920 to 414x736": preprocess((1080, 1920), (414, 736), (416, 736)),
        "`paste`, 100 masks 104x184 to 1080x1920, crops of 10 % of the image": paste(
            100, (104, 184), 100 * 1080 * 1920 // 10, 2
        ),
        "panoptic merge, those masks and 54 classes, half of the image stuff": panoptic(
            54, (104, 184), (1080, 1920), 100 * 1080 * 1920 // 10
        ),
    }
    rows = ["| launch | bytes | operations |", "| --- | --- | --- |"]
    rows += [f"| {name} | {w.bytes:,} | {w.operations:,} |" for name, w in cases.items()]
    return "\n".join(rows)
