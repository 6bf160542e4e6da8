"""The same picture gives the same instances, in whatever form it comes."""

import gzip
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import condinst_infer as ci
from condinst_infer.errors import ConfigError, InputError
from tests.support.fake_session import FakeSession, assert_same, photograph
from tests.support.pipeline_process import arrays_of, assert_bit_equal

Made = tuple[Any, dict[str, Any]]  # a source, and keyword arguments of the call


class OnlyRead:
    """A file object that can't seek and says nothing of itself, as a response is."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def read(self) -> bytes:
        content, self._rest = self._rest, b""
        return content


def forms(path: Path) -> dict[str, Callable[[], Made]]:
    """Every form of one decoded picture; files are opened when the form is asked for."""
    content = path.read_bytes()
    bgr = cv2.imread(str(path))
    assert bgr is not None
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    height, width = bgr.shape[:2]
    wide = np.zeros((2 * height, width + 5, 4), np.uint8)
    wide[::2, 5:, :3] = bgr
    tensor, planes = torch.from_numpy(bgr), torch.from_numpy(bgr).permute(2, 0, 1)
    is_rgb = {"channel_order": "rgb"}

    def made(source: Any, **options: Any) -> Callable[[], Made]:
        return lambda: (source, options)

    return {
        "path": made(path),
        "str": made(str(path)),
        "bytes": made(content),
        "bytearray": made(bytearray(content)),
        "memoryview": made(memoryview(content)),
        "BytesIO": lambda: (io.BytesIO(content), {}),
        "no seek": lambda: (OnlyRead(content), is_rgb),
        "Pillow": lambda: (Image.open(path), is_rgb),
        "BGR": made(bgr),
        "RGB": made(rgb, **is_rgb),
        "BGRA": made(np.dstack([bgr, bgr[..., 0]])),
        "RGBA": made(np.dstack([rgb, rgb[..., 0]]), **is_rgb),
        "strided array": made(wide[::2, 5:, :3]),
        "tensor": made(tensor),
        "tensor RGB": made(torch.from_numpy(rgb), **is_rgb),
        "tensor [3, H, W]": made(planes.contiguous()),
        "strided tensor": made(torch.from_numpy(wide)[::2, 5:, :3]),
        "strided tensor [3, H, W]": made(planes),
    }


FORMS = [*forms(Path(ci.__file__).parent / "data" / "nuclei.jpg")]


@pytest.fixture(scope="module")
def nuclei(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model that ships, its picture in all forms, and the instances in it."""
    # decoded once: OpenCV and Pillow may have other JPEG decoders
    path = tmp_path_factory.mktemp("inputs") / "nuclei.png"
    Image.open(demo_folder / "nuclei.jpg").save(path)
    with ci.load("nuclei", threads=2) as pipeline:
        result = pipeline(path)
        assert len(result) == 156
        yield pipeline, forms(path), arrays_of(result)


@pytest.mark.parametrize("form", FORMS)
def test_156_nuclei_are_bit_equal_in_every_form(form: str, nuclei: Any) -> None:
    pipeline, made, expected = nuclei
    source, options = made[form]()
    assert_bit_equal(arrays_of(pipeline(source, **options)), expected)


@pytest.mark.parametrize("shape", ["[H, W]", "[H, W, 1]"])
def test_156_nuclei_are_bit_equal_in_grey(shape: str, nuclei: Any) -> None:
    pipeline, made, expected = nuclei
    grey = made["BGR"]()[0][..., 0]  # the shipped picture has no colours
    grey = grey if shape == "[H, W]" else grey[..., None]
    assert_bit_equal(arrays_of(pipeline(grey)), expected)


def test_156_nuclei_are_bit_equal_in_a_batch(nuclei: Any) -> None:
    pipeline, made, expected = nuclei
    images, planes = made["BGR"]()[0][None], made["strided tensor [3, H, W]"]()[0][None]
    for batch in (images, planes):
        (result,) = pipeline(batch)
        assert_bit_equal(arrays_of(result), expected)


@pytest.fixture
def colourful(tmp_path: Path) -> Path:
    """A picture whose channels differ everywhere."""
    path = tmp_path / "colourful.png"
    image = photograph((60, 90)) // 2
    image[..., 0] += 100
    image[..., 2] += 20
    cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_the_image_of_a_result_is_bgr(form: str, colourful: Path) -> None:
    pipeline = ci.Pipeline(FakeSession())
    source, options = forms(colourful)[form]()
    expected = cv2.imread(str(colourful))
    np.testing.assert_array_equal(pipeline(source, **options).image, expected)
    source, options = forms(colourful)[form]()
    (mapped,) = pipeline.map([source], **options)
    np.testing.assert_array_equal(mapped.image, expected)


@pytest.mark.parametrize("form", ["path", "bytes", "BytesIO", "Pillow"])
def test_the_channel_order_is_of_arrays_alone(form: str, colourful: Path) -> None:
    for order in ("bgr", "rgb"):
        source, _ = forms(colourful)[form]()
        result = ci.Pipeline(FakeSession())(source, channel_order=order)
        np.testing.assert_array_equal(result.image, cv2.imread(str(colourful)))


def test_the_channel_order_reaches_the_network(colourful: Path) -> None:
    session = FakeSession()
    rgb = forms(colourful)["RGB"]()[0]
    pipeline = ci.Pipeline(session)
    pipeline(rgb, channel_order="rgb")
    pipeline(colourful)
    pipeline(rgb)
    right, expected, wrong = (feeds["images"] for feeds in session.fed)
    assert (right == expected).all() and (wrong != expected).any()


def test_the_panoptic_segmentation_takes_a_channel_order(
    panoptic_onnx: Path, colourful: Path
) -> None:
    rgb = forms(colourful)["RGB"]()[0]
    with ci.load(panoptic_onnx, threads=1) as pipeline:
        expected = pipeline.panoptic(colourful)
        np.testing.assert_array_equal(
            pipeline.panoptic(rgb, channel_order="rgb").id_map, expected.id_map
        )
        with pytest.raises(ConfigError, match="channel_order"):
            pipeline.panoptic(rgb, channel_order="BGR")  # type: ignore[call-overload]


@pytest.mark.parametrize("order", ["RGB", "grb", "", None])
def test_another_channel_order_is_refused_at_once(order: Any) -> None:
    pipeline, image = ci.Pipeline(FakeSession()), photograph((60, 90))
    for call in (pipeline, pipeline.map):
        with pytest.raises(ConfigError, match="channel_order is .* must be one of bgr, rgb"):
            call([image], channel_order=order)


@pytest.mark.parametrize("kind", ["array", "tensor", "tensor [N, 3, H, W]"])
def test_an_array_of_several_images_gives_a_list(kind: str) -> None:
    images = np.stack([photograph((60, 90), seed) for seed in range(3)])
    batch: Any = images if kind == "array" else torch.from_numpy(images)
    if kind == "tensor [N, 3, H, W]":
        batch = batch.permute(0, 3, 1, 2)
    pipeline = ci.Pipeline(FakeSession(), max_batch=2)
    expected = [pipeline(image) for image in images]
    for results in (pipeline(batch), list(pipeline.map(batch, workers=2))):
        assert isinstance(results, list) and len(results) == 3
        for result, one in zip(results, expected, strict=True):
            assert_same(result, one)
    assert pipeline(batch[:0]) == []


def test_a_list_mixes_all_forms(colourful: Path) -> None:
    pipeline = ci.Pipeline(FakeSession())
    expected = pipeline(colourful)

    def sources() -> Iterator[Any]:
        made = forms(colourful)
        for form in ("path", "bytes", "BytesIO", "Pillow", "BGR", "BGRA", "tensor"):
            yield made[form]()[0]

    for many in (list(sources()), tuple(sources()), sources()):
        results = pipeline(many)
        assert len(results) == 7
        for result in results:
            assert_same(result, expected)
    for result in pipeline.map(sources(), workers=2):
        assert_same(result, expected)


def test_a_file_object_is_read_from_where_it_stands_and_left_open(colourful: Path) -> None:
    pipeline = ci.Pipeline(FakeSession())
    expected = pipeline(colourful)
    with colourful.open("rb") as file:
        assert_same(pipeline(file), expected)
        assert not file.closed
        with pytest.raises(InputError, match=r"colourful\.png has 0 bytes .*file\.seek\(0\)"):
            pipeline(file)
        file.seek(0)
        assert_same(pipeline([file])[0], expected)
    behind = io.BytesIO(b"a header" + colourful.read_bytes())
    behind.seek(8)
    assert_same(pipeline(behind), expected)
    zipped = gzip.compress(colourful.read_bytes())
    with gzip.open(io.BytesIO(zipped)) as file:
        assert_same(pipeline(file), expected)


def test_what_can_not_be_read_is_said_in_a_sentence(colourful: Path) -> None:
    closed = colourful.open("rb")
    closed.close()
    png = colourful.read_bytes()
    for source, words in (
        (b"", "the content of the bytes is empty"),
        (bytearray(b"no image at all!"), "the content of the bytearray is not an image"),
        (memoryview(png)[: len(png) // 2], "the content of the memoryview can't be decoded"),
        (closed, r"colourful\.png can't be read: .*closed file"),
        (io.StringIO("text"), "the content of the file object gives str .*'rb'"),
        (io.BytesIO(b"no image at all!"), "the content of the file object is not an image"),
        (gzip.open(io.BytesIO(gzip.compress(png)[:-20])), "file object can't be read"),
    ):
        with pytest.raises(InputError, match=words):
            ci.Pipeline(FakeSession())(source)
    with pytest.raises(InputError, match="the content of the bytes has 90 x 60 .* limit of 100"):
        ci.Pipeline(FakeSession(), max_pixels=100)(png)


def test_map_takes_a_folder_or_a_pattern(photos: Path) -> None:
    pipeline = ci.Pipeline(FakeSession())
    expected = [pipeline(photos / name) for name in ("12.jpg", "a.png", "b/a.png")]
    for source in (photos, str(photos), str(photos / "**" / "*"), photos / "**" / "*"):
        results = list(pipeline.map(source, workers=2))
        assert len(results) == 3
        for result, one in zip(results, expected, strict=True):
            assert_same(result, one)
    assert len(list(pipeline.map(f"{photos}/?.png"))) == 1


def test_map_refuses_a_folder_or_a_pattern_without_images_at_once(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (
        (tmp_path / "empty", "no images .* in the folder .*empty"),
        (f"{photos}/*.txt", r"no images .* that match .*\*\.txt"),
        (f"{photos}/a.png", "iterable of images"),
        ("https://example.org/a?b=*", "iterable of images"),
        (b"*.png", "iterable of images"),
    ):
        with pytest.raises(InputError, match=words):
            ci.Pipeline(FakeSession()).map(source)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"is a folder; .*Pipeline\.map"):
        ci.Pipeline(FakeSession())(photos)


def test_a_pipeline_without_torch_does_not_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(InputError, match="the image is a object"):
        ci.Pipeline(FakeSession())(object())  # type: ignore[call-overload]
    assert "torch" not in sys.modules
