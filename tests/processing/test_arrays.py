"""Tensors become arrays; what is no uint8 image is refused with the line that converts it."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import read_image

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 30, 3), np.uint8)


def refusal(source: Any) -> str:
    """The message of the InputError; one line."""
    with pytest.raises(InputError) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def converted(message: str, image: Any) -> Any:
    """The image as the line of code in `message` converts it."""
    return eval(message.partition("Convert it: ")[2], {"np": np, "torch": torch, "image": image})


def as_array(image: Any) -> np.ndarray:
    return image.numpy() if isinstance(image, torch.Tensor) else image


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("of", ["array", "tensor"])
def test_the_line_in_the_message_gives_the_image_back(kind: str, of: str) -> None:
    for scale, code in ((255, "(image * 255).round()"), (1, "image.round()")):
        floats: Any = (IMAGE / scale).astype(kind)
        cast = "astype(np.uint8)"
        if of == "tensor":
            floats, cast = torch.from_numpy(floats), "to(torch.uint8)"
        message = refusal(floats)
        assert message == (
            f"the image {of} is {kind}; it must be uint8 with values 0 to 255. "
            f"Convert it: {code}.{cast}"
        )
        back = converted(message, floats)
        # float16 has eleven digits: worst measured 0
        np.testing.assert_array_equal(read_image(back), IMAGE)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (IMAGE > 127, np.where(IMAGE > 127, 255, 0)),
        (IMAGE.astype(np.int64), IMAGE),
        (IMAGE.astype(np.uint16) * 257, IMAGE),
        (torch.from_numpy(IMAGE > 127), np.where(IMAGE > 127, 255, 0)),
        (torch.from_numpy(IMAGE.astype(np.int64)), IMAGE),
        (torch.from_numpy(IMAGE.astype(np.int32) * 257), IMAGE),
        (np.float32(IMAGE / 255) + np.float32(1e-6), IMAGE),  # what resampling leaves
    ],
    ids=lambda value: str(value.dtype),
)
def test_other_types_have_their_line_too(image: Any, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(as_array(converted(refusal(image), image)), expected)


@pytest.mark.parametrize("of", ["array", "tensor"])
def test_what_no_line_converts_is_described(of: str) -> None:
    normalized: Any = (IMAGE.astype(np.float32) - 120) / 58
    unknown = normalized.copy()
    unknown[3, 4, 1] = np.nan
    empty, complex_ = normalized[:0], normalized.astype(np.complex64)
    if of == "tensor":
        normalized, unknown, empty, complex_ = map(
            torch.from_numpy, (normalized, unknown, empty, complex_)
        )
    message = refusal(normalized)
    assert "before it was normalized" in message and "values from -2." in message
    assert "not finite" in refusal(unknown)
    assert refusal(empty).endswith("float32; it must be uint8 with values 0 to 255.")
    assert "complex64" in refusal(complex_)


def test_a_tensor_is_read_without_a_copy() -> None:
    tensor = torch.from_numpy(IMAGE.copy())
    assert np.shares_memory(read_image(tensor), tensor.numpy())


@pytest.mark.parametrize("shape", ["[H, W, 3]", "[3, H, W]", "[H, W, 4]", "[H, W, 1]", "[H, W]"])
def test_a_tensor_may_have_each_shape_of_an_image(shape: str) -> None:
    grey = np.repeat(IMAGE[..., :1], 3, axis=2)
    array, expected = {
        "[H, W, 3]": (IMAGE, IMAGE),
        "[3, H, W]": (IMAGE.transpose(2, 0, 1), IMAGE),
        "[H, W, 4]": (np.dstack([IMAGE, IMAGE[..., 0]]), IMAGE),
        "[H, W, 1]": (IMAGE[..., :1], grey),
        "[H, W]": (IMAGE[..., 0], grey),
    }[shape]
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    np.testing.assert_array_equal(read_image(tensor), expected)
    strided = torch.stack([tensor, tensor], dim=-1)[..., 1]
    assert not strided.is_contiguous()
    np.testing.assert_array_equal(read_image(strided), expected)


@pytest.mark.parametrize("last_are_channels", [True, False])
def test_three_at_both_ends_needs_a_permutation(last_are_channels: bool) -> None:
    image = IMAGE[:3]  # [3, W, 3]
    tensor = torch.from_numpy(image)
    if not last_are_channels:
        image = IMAGE[:, :3]  # [H, 3, 3]
        tensor = torch.from_numpy(image).permute(2, 0, 1)  # [3, H, 3]
    message = refusal(tensor)
    first, last = re.findall(r"image(\.permute\(\d, \d, \d\))", message)
    permuted = eval(f"image{last if last_are_channels else first}", {"image": tensor})
    np.testing.assert_array_equal(read_image(permuted), image)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(4, dtype=torch.uint8), r"shape \(4,\)"),
        (torch.zeros(4, 9, 9, dtype=torch.uint8), r"shape \(4, 9, 9\).*transpose"),
        (torch.zeros(9, 9, 2, dtype=torch.uint8), r"shape \(9, 9, 2\)"),
        (torch.zeros(0, 9, 3, dtype=torch.uint8), "no pixels"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8).to_sparse(), "can't become an array"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8, device="meta"), "can't become an array"),
        (torch.zeros(9, 9, 3, device="meta"), "tensor is float32; it must be uint8"),
        (torch.zeros(9, 9, 3, requires_grad=True), r"\(image \* 255\)\.round\(\)\.to"),
        (torch.zeros(9, 9, 3, dtype=torch.bfloat16), r"tensor is bfloat16.*\.to\(torch\.uint8\)"),
    ],
)
def test_other_tensors_are_refused(tensor: torch.Tensor, words: str) -> None:
    assert re.search(words, refusal(tensor))


def test_channels_at_the_front_of_an_array_are_pointed_out() -> None:
    assert "image.transpose(1, 2, 0)" in refusal(IMAGE.transpose(2, 0, 1))


def test_an_array_of_the_gpu_is_pointed_out() -> None:
    class OnGpu:
        __cuda_array_interface__ = {"shape": (9, 9, 3)}  # noqa: RUF012 - as other libraries have it

    assert "in the memory of a GPU and the model runs on the CPU" in refusal(OnGpu())
