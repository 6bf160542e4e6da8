"""The preprocess kernel: against whole-number arithmetic, the CPU's resizing and Pillow."""

import numpy as np
import pytest
from PIL import Image

from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing.preprocess import resize

Size = tuple[int, int]  # (height, width)

SIZES = [  # frame, resized
    ((97, 131), (41, 56)),  # shrinks
    ((64, 96), (32, 48)),  # by two: many values lie between two grey levels
    ((31, 45), (62, 99)),  # enlarges
    ((24, 18), (48, 36)),
    ((50, 30), (20, 70)),  # one axis each
    ((30, 50), (70, 20)),
    ((33, 65), (33, 40)),  # one axis stays
    ((33, 65), (50, 65)),
    ((1, 1), (9, 33)),
    ((1, 700), (1, 40)),
    ((700, 1), (40, 1)),
    ((7, 5), (1, 1)),
    ((2, 3), (100, 3)),
    ((17, 3840), (16, 512)),  # a strip of a 4K frame
]


def photograph(size: Size) -> np.ndarray:
    """Noise, gradients and hard edges beside each other, uint8 [h, w, 3]."""
    y, x = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(0).integers(0, 256, size)
    gradient = (3 * y + 2 * x) % 256
    edges = np.where((x // 5 + y // 3) % 2, 255, 0)
    return np.stack([noise, gradient, edges], axis=2).astype(np.uint8)


def weights(inputs: int, outputs: int) -> np.ndarray:
    """Whole numbers [outputs, inputs]: triangles as wide as two pixels of the coarser grid."""
    x, i = np.mgrid[:outputs, :inputs]
    distance = np.abs((2 * i + 1) * outputs - (2 * x + 1) * inputs)
    return np.maximum(2 * max(inputs, outputs) - distance, 0)


def reference(frame: np.ndarray, size: Size) -> np.ndarray:
    """Columns, then rows, each rounded to grey levels with halves up; [*size, 3]."""
    rows, columns = weights(frame.shape[0], size[0]), weights(frame.shape[1], size[1])
    total = columns.sum(axis=1)[:, None]
    frame = (2 * np.einsum("xi,hic->hxc", columns, frame) + total) // (2 * total)
    total = rows.sum(axis=1)[:, None, None]
    return (2 * np.einsum("yi,ixc->yxc", rows, frame) + total) // (2 * total)


def preprocessed(
    stream: Stream, frame: np.ndarray, net_size: Size, canvas: Size, padding: int = 0
) -> np.ndarray:
    """The kernel's image, uint8 [*canvas, 3], from rows with `padding` bytes of garbage behind."""
    height, width = frame.shape[:2]
    rows = np.full((height, 3 * width + padding), 171, dtype=np.uint8)
    rows[:, : 3 * width] = frame.reshape(height, 3 * width)
    launch = kernels.preprocess(
        pitch=rows.shape[1], size=(height, width), net_size=net_size, canvas=canvas
    )
    image = stream.empty((*canvas, 3), np.uint8)
    stream.launch(launch, [stream.array(rows)], [image])
    return stream.numpy(image)


@pytest.mark.parametrize(("size", "net_size"), SIZES)
def test_frame_is_resized_as_on_the_cpu(stream: Stream, size, net_size):
    frame = photograph(size)
    found = preprocessed(stream, frame, net_size, net_size).astype(int)
    assert (found == reference(frame, net_size)).all()
    # Pillow's own weights are rounded, and some versions take the rows first. OpenCV enlarges.
    pillow = np.asarray(Image.fromarray(frame).resize(net_size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(found - pillow).max() <= 1
    assert np.abs(found - resize(frame, net_size)).max() <= 1


@pytest.mark.parametrize(("size", "net_size"), [((5000, 20), (1, 1)), ((3, 20_000), (2, 5))])
def test_thousands_of_pixels_become_one(stream: Stream, size, net_size):
    frame = photograph(size)
    found = preprocessed(stream, frame, net_size, net_size).astype(int)
    # Sums pass 2^24, so float32 rounds them and a half may go down.
    assert np.abs(found - reference(frame, net_size)).max() <= 1
    assert np.abs(found - resize(frame, net_size)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (8, 32), (33, 65), (9, 31)])
def test_frame_of_the_network_size_is_copied(stream: Stream, size):
    frame = photograph(size)
    assert (preprocessed(stream, frame, size, size) == frame).all()


@pytest.mark.parametrize("padding", [1, 61])
def test_rows_may_be_apart(stream: Stream, padding):
    frame = photograph((29, 47))
    for size in ((29, 47), (17, 80)):
        together = preprocessed(stream, frame, size, size)
        assert (preprocessed(stream, frame, size, size, padding) == together).all()


@pytest.mark.parametrize(
    ("net_size", "canvas"),
    [((1, 1), (32, 32)), ((40, 51), (64, 64)), ((64, 33), (64, 64)), ((7, 64), (96, 64))],
)
def test_canvas_is_zero_outside_the_image(stream: Stream, net_size, canvas):
    frame = np.maximum(photograph((30, 40)), 1)
    image = preprocessed(stream, frame, net_size, canvas)
    inside = preprocessed(stream, frame, net_size, net_size)
    assert inside.all()
    assert (image[: net_size[0], : net_size[1]] == inside).all()
    assert not image[net_size[0] :].any() and not image[:, net_size[1] :].any()


def test_white_stays_white(stream: Stream):
    frame = np.full((77, 301, 3), 255, dtype=np.uint8)
    assert (preprocessed(stream, frame, (50, 211), (50, 211)) == 255).all()
