"""Cases of the kernels between the image and the network: preprocess, mask_boxes and paste."""

from typing import Any, NamedTuple

import numpy as np

from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing import paste
from condinst_infer.profiling.gpu.cases import FLOATS, UNDECIDED, Arrays, KernelCase, launched
from condinst_infer.profiling.gpu.seeded import Seeded, blobs, packed, unpacked

Size = tuple[int, int]  # (height, width)

NEAR_HALF = 1e-5  # where rounding may decide whether a pixel is foreground
_ROOM = 1 << 30  # words of `bits`, more than any case needs


def preprocess_cases() -> list[KernelCase]:
    """Enlarged, shrunk and copied frames; rows apart, a canvas that is larger."""
    small = [
        ((48, 64), (20, 27), (32, 32), 0),
        ((20, 30), (41, 33), (64, 64), 5),
        ((31, 17), (31, 17), (31, 17), 0),
        ((7, 90), (1, 1), (8, 33), 64),
        ((17, 768), (16, 102), (16, 102), 1),
    ]
    large = [
        ((1080, 1920), (414, 736), (416, 736), 0),
        ((480, 640), (800, 1067), (800, 1088), 96),
    ]
    return [_preprocess_case(*case, case in small) for case in (*small, *large)]


def _preprocess_case(
    size: Size, net_size: Size, canvas: Size, padding: int, small: bool
) -> KernelCase:
    pitch = 3 * size[1] + padding

    def inputs() -> Arrays:
        rows = Seeded(size[1]).integers(0, 256, (size[0], pitch)).astype(np.uint8)
        rows[:, : 3 * (size[1] // 2)] //= 128  # half of the frame is 0 and 1: halves are frequent
        rows[: size[0] // 3] = rows[: size[0] // 3] // 200 * 255
        return {"rows": rows}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.preprocess(pitch=pitch, size=size, net_size=net_size, canvas=canvas)
        outputs = [((*canvas, 3), np.uint8)]
        return {"image": launched(stream, launch, inputs.values(), outputs)[0]}

    def expected(inputs: Arrays) -> Arrays:
        frame = inputs["rows"][:, : 3 * size[1]].reshape(*size, 3)
        image = np.zeros((*canvas, 3), np.uint8)
        image[: net_size[0], : net_size[1]] = _resized(frame, net_size)
        return {"image": image}

    return KernelCase(
        name=f"{size} to {net_size} on {canvas}, rows of {pitch} bytes",
        inputs=inputs,
        run=run,
        expected=expected,
        twin="numpy",
        small=small,
        stored=small,
    )


def _resized(frame: np.ndarray, size: Size) -> np.ndarray:
    """Columns, then rows, each rounded to grey levels with halves up: uint8 [*size, 3].

    Whole numbers in float64, which holds them exactly.
    """
    values = frame.astype(np.float64)
    for axis in (1, 0):
        inputs, outputs = frame.shape[axis], size[axis]
        x, i = np.mgrid[:outputs, :inputs]
        distance = np.abs((2 * i + 1) * outputs - (2 * x + 1) * inputs)
        weights = np.maximum(2.0 * max(inputs, outputs) - distance, 0)
        total = weights.sum(axis=1, keepdims=True)
        sums = np.tensordot(weights, values, (1, axis))  # [outputs, the other side, 3]
        values = ((2 * sums + total[:, :, None]) // (2 * total[:, :, None])).swapaxes(0, 1)
        values = values if axis == 1 else values.swapaxes(0, 1)
    return values.astype(np.uint8)


class PasteSizes(NamedTuple):
    """Sizes of one paste."""

    stride: int
    shape: Size
    net_size: Size
    image_size: Size


_SMALL_PASTES = [
    (9, PasteSizes(4, (9, 11), (33, 44), (50, 61))),
    (9, PasteSizes(2, (16, 16), (30, 25), (11, 13))),  # shrinks; padding
    (1, PasteSizes(8, (5, 7), (40, 56), (97, 64))),
]
_LARGE_PASTES = [
    (40, PasteSizes(4, (128, 184), (512, 731), (1080, 1542))),
    (100, PasteSizes(4, (200, 272), (800, 1067), (480, 640))),
]


def mask_boxes_cases() -> list[KernelCase]:
    """Crops with and without room for their words; not all slots are used."""
    cases = [(*case, True) for case in _SMALL_PASTES] + [(*case, False) for case in _LARGE_PASTES]
    return [
        _boxes_case(*case, capacity, dtype)
        for case in cases
        for capacity in (_ROOM, 0)
        for dtype in FLOATS
    ]


def paste_cases() -> list[KernelCase]:
    cases = [(*case, True) for case in _SMALL_PASTES] + [(*case, False) for case in _LARGE_PASTES]
    return [_paste_case(*case, dtype) for case in cases for dtype in FLOATS]


def _boxes_case(k: int, sizes: PasteSizes, small: bool, capacity: int, dtype: Any) -> KernelCase:
    def inputs() -> Arrays:
        count = np.array([max(1, k - 2)], np.int32)
        return {"masks": blobs(k, k, sizes.shape), "count": count}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        settings = {"k": k, "capacity": capacity, "dtype": np.dtype(dtype), **sizes._asdict()}
        given = [inputs["masks"].astype(dtype), inputs["count"]]
        outputs = [((k, kernels.CROP_FIELDS), np.int32), np.zeros(1, np.int32)]
        crops, used = launched(stream, kernels.mask_boxes(**settings), given, outputs)
        return {"boxes": crops[:, :4], "used": used, "misplaced": _misplaced(crops, capacity)}

    def expected(inputs: Arrays) -> Arrays:
        crops = crops_of(inputs["masks"], int(inputs["count"][0]), sizes)
        words = crops[:, 3] * -(-crops[:, 2] // 32)
        none = np.zeros(1, np.int32)
        used = words.sum(keepdims=True).astype(np.int32)
        return {"boxes": crops[:, :4], "used": used, "misplaced": none}

    of = f"{k} masks {sizes.shape} at {sizes.stride} to {sizes.image_size}"
    return KernelCase(
        name=f"{of}, {'room' if capacity else 'no room'}",
        inputs=inputs,
        run=run,
        expected=expected,
        twin="numpy",
        dtype=dtype,
        small=small,
        stored=small,
    )


def _misplaced(crops: np.ndarray, capacity: int) -> np.ndarray:
    """The number of crops [K, 5] in a wrong place: blocks end in any order, but leave no gap."""
    real = crops[crops[:, 2] > 0]
    if not capacity:
        return (real[:, 4] != -1).sum(keepdims=True)
    real = real[np.argsort(real[:, 4])]
    ends = np.cumsum(real[:, 3] * -(-real[:, 2] // 32))
    return (real[:, 4] != np.concatenate([[0], ends])[: len(real)]).sum(keepdims=True)


def crops_of(masks: np.ndarray, count: int, sizes: PasteSizes) -> np.ndarray:
    """Crops int32 [K, 5] of the pixels that read a cell above 0.5, their words one by one."""
    crops, words = np.zeros((len(masks), kernels.CROP_FIELDS), np.int32), 0
    rows, columns = _axes(sizes)
    for crop, mask in zip(crops[:count], masks > 0.5, strict=False):
        (y, x) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not y.size:
            continue
        top, bottom = rows.first_output[y[0]], rows.stop_output[y[-1]]
        left, right = columns.first_output[x[0]], columns.stop_output[x[-1]]
        if top < bottom and left < right:
            crop[:] = left, top, right - left, bottom - top, words
            words += (bottom - top) * -(-(right - left) // 32)
    return crops


def _axes(sizes: PasteSizes) -> list[Any]:
    """Rows and columns as `processing.paste` has them."""
    pairs = zip(sizes.shape, sizes.net_size, sizes.image_size, strict=True)
    return [paste._axis(cells, sizes.stride, net, outputs) for cells, net, outputs in pairs]


def _paste_case(k: int, sizes: PasteSizes, small: bool, dtype: Any) -> KernelCase:
    def inputs() -> Arrays:
        masks = blobs(k, k, sizes.shape)
        crops = crops_of(masks, k, sizes)
        crops[1::5, 4] = -1  # no place: nothing may be written
        return {"masks": masks, "crops": crops}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.paste(k=k, dtype=np.dtype(dtype), **sizes._asdict())
        given = [inputs["masks"].astype(dtype), inputs["crops"]]
        bits = launched(stream, launch, given, [np.zeros(_words(inputs["crops"]), np.uint32)])[0]
        return {"pixels": unpacked(bits)}

    def expected(inputs: Arrays) -> Arrays:
        rows, columns = (axis.weights.astype(np.float64) for axis in _axes(sizes))
        pixels = np.zeros(32 * _words(inputs["crops"]), bool)
        undecided = []
        for mask, (x, y, width, height, word) in zip(*inputs.values(), strict=True):
            if word < 0 or not width:
                continue
            wide = mask.astype(np.float64) @ columns[x : x + width].T
            values = rows[y : y + height] @ wide
            near = np.abs(values - 0.5)
            near = unpacked(packed((near > 0) & (near < NEAR_HALF))).ravel()
            inside = unpacked(packed(values > 0.5)).ravel()
            pixels[32 * word : 32 * word + inside.size] = inside
            undecided.append(32 * word + np.flatnonzero(near))
        return {"pixels": pixels, f"pixels{UNDECIDED}": np.concatenate(undecided)}

    return KernelCase(
        name=f"{k} masks {sizes.shape} at {sizes.stride} to {sizes.image_size}",
        inputs=inputs,
        run=run,
        expected=expected,
        twin="numpy",
        dtype=dtype,
        small=small,
        stored=small,
    )


def _words(crops: np.ndarray) -> int:
    """Words of all crops, those without a place too."""
    return int((crops[:, 3] * -(-crops[:, 2] // 32)).sum())
