"""The dynamic_mask_head kernel: the probabilities of ops.dynamic_mask_head."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from condinst_infer import ops
from condinst_infer.config.model import mask_layers
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream

PAPERS = {
    "depth": 3,
    "width": 8,
    "channels": 8,
    "coordinates": "relative",
    "use_features": True,
}
READS = [  # what a mask head may read
    ("none", True),
    ("relative", True),
    ("relative", False),
    ("absolute", True),
    ("absolute", False),
]
SIZES = [(1, 1), (7, 5), (8, 32), (9, 33), (17, 65)]  # cells; a tile has 8x32
DTYPES = [np.float32, np.float16]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def made_up_inputs(
    n: int, k: int, size: tuple[int, int], counts: list[int], dtype: type, head: dict[str, Any]
) -> Inputs:
    """features, params, centres, sizes and count; unused slots hold nan where they can."""
    random = torch.Generator().manual_seed(k)
    p = sum(o * i + o for o, i in mask_layers(**head))
    features = torch.randn((n, head["channels"], *size), generator=random)
    params = torch.randn((n, k, p), generator=random) / 2  # logits of some units
    centres = torch.rand((n, k, 2), generator=random) * 300
    sizes = torch.tensor([64.0, 128.0, 256.0])[torch.arange(n * k) % 3].reshape(n, k)
    for i, count in enumerate(counts):
        params[i, count:] = torch.nan
        sizes[i, count:] = 0
    kind = torch.float16 if dtype == np.float16 else torch.float32
    count = torch.tensor(counts, dtype=torch.int32)
    return features.to(kind), params.to(kind), centres, sizes, count


def masks_of(stream: Stream, inputs: Inputs, **settings: Any) -> np.ndarray:
    """What the kernel puts out."""
    arrays = [tensor.numpy() for tensor in inputs]
    (n, _, h, w), k, dtype = arrays[0].shape, arrays[1].shape[1], arrays[0].dtype
    launch = kernels.dynamic_mask_head(n, k, h, w, dtype=dtype, **settings)
    factor = settings["factor"]
    masks = stream.empty((n, k, h * factor, w * factor), dtype)
    stream.launch(launch, [stream.array(a) for a in arrays], [masks])
    return stream.numpy(masks)


def assert_as_torch(stream: Stream, inputs: Inputs, **settings: Any) -> None:
    """The kernel against torch in float32, both on the same values, halves or not."""
    found = masks_of(stream, inputs, **settings)
    features, params, centres, sizes, count = inputs
    arguments = (features.float(), params.float(), centres, sizes, count)
    wanted = ops.dynamic_mask_head(*arguments, **settings).numpy()
    # measured 4.5e-7: sums in another order, torch folds the coordinates; a GPU fuses what it adds
    tolerance = 3e-6
    if found.dtype == np.float16:
        # torch's halves are `wanted` rounded, off by half a unit in the last place: twice as far
        tolerance = tolerance + np.spacing(wanted.astype(np.float16)).astype(np.float32)
    assert found.shape == wanted.shape
    assert (np.abs(found.astype(np.float32) - wanted) <= tolerance).all()
    for masks, used in zip(found, count.tolist(), strict=True):
        assert (masks[used:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_masks_of_any_size_are_those_of_torch(
    stream: Stream, size: tuple[int, int], factor: int, dtype: type
) -> None:
    stride = 4 if factor == 1 else 8
    for n, k, counts in ((1, 1, [1]), (3, 5, [0, 1, 5])):
        inputs = made_up_inputs(n, k, size, counts, dtype, PAPERS)
        assert_as_torch(stream, inputs, stride=stride, factor=factor, **PAPERS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_masks_of_any_head_are_those_of_torch(
    stream: Stream, depth: int, factor: int, dtype: type
) -> None:
    for (coordinates, use_features), width, channels in itertools.product(
        READS, (1, 2, 8, 11, 16), (1, 8, 10, 16)
    ):
        head = {"depth": depth, "width": width, "channels": channels}
        head |= {"coordinates": coordinates, "use_features": use_features}
        inputs = made_up_inputs(1, 2, (3, 4), [2], dtype, head)
        assert_as_torch(stream, inputs, stride=8, factor=factor, **head)


@pytest.mark.parametrize("dtype", DTYPES)
def test_far_logits_give_zero_and_one(stream: Stream, dtype: type) -> None:
    head = {"depth": 1, "width": 1, "channels": 1, "coordinates": "none", "use_features": True}
    inputs = made_up_inputs(1, 1, (1, 9), [1], dtype, head)
    inputs[0][:] = torch.linspace(-200, 200, 9)  # the exponential overflows from 89 on
    inputs[1][:] = torch.tensor([1.0, 0.0])  # weight, bias
    assert_as_torch(stream, inputs, stride=8, factor=1, **head)
    masks = masks_of(stream, inputs, stride=8, factor=1, **head)
    assert masks[0, 0, 0, [0, 4, 8]].tolist() == [0, 0.5, 1]


def test_no_slots_give_no_masks(stream: Stream) -> None:
    inputs = made_up_inputs(2, 0, (3, 4), [0, 0], np.float32, PAPERS)
    assert masks_of(stream, inputs, stride=8, factor=2, **PAPERS).shape == (2, 0, 6, 8)
