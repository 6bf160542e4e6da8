"""The example for Node, and the JavaScript that it shares with the page: as the package does it."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import PIL
import pytest

from condinst_infer.config.model import CondInstConfig, override
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata
from condinst_infer.processing.geometry import PlacedImage, placement
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.processing.preprocess import network_image, read_image, stack_images
from tests.support.example_instances import assert_same_instances, mask_from_runs
from tests.support.examples import EXAMPLES, run_without_package, write_nuclei_png
from tests.support.javascript_examples import install_example

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is missing")
Call = Callable[..., Any]
_CALL = """
import { readFileSync, writeFileSync } from "node:fs";
const shared = await import(process.argv[2]);
const types = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };
const read = (key, value) => value?.file
  ? new types[value.dtype](new Uint8Array(readFileSync(value.file)).buffer) : value;
const write = (key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value;
const calls = JSON.parse(readFileSync(process.argv[3]), read);
const results = calls.map(([name, ...values]) => {
  try { return shared[name](...values); } catch (error) { return { error: error.message }; }
});
writeFileSync(process.argv[4], JSON.stringify(results, write));
"""


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Calls functions of condinst.mjs, each [name, argument, ...], in one process of Node."""

    def call(*calls: list[Any]) -> list[Any]:
        def by_file(array: np.ndarray) -> dict[str, str]:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.bin"
            array.tofile(path)
            return {"file": str(path), "dtype": str(array.dtype)}

        (tmp_path / "call.mjs").write_text(_CALL)
        (tmp_path / "calls.json").write_text(json.dumps(calls, default=by_file))
        names = ("call.mjs", EXAMPLES / "web/condinst.mjs", "calls.json", "results.json")
        words = [str(tmp_path / name) for name in names]  # an absolute name stays as it is
        subprocess.run(["node", *words], check=True)
        return json.loads((tmp_path / "results.json").read_text())

    return call


def dictionary(metadata: Metadata) -> dict[str, Any]:
    """The metadata as a model file has it."""
    return json.loads(metadata.to_props()["condinst"])


def noise(height: int, width: int) -> np.ndarray:
    """Grey levels of any value, smooth ones among them: BGR uint8 [height, width, 3]."""
    rng = np.random.default_rng(height * width)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return np.concatenate([image[: height // 2], cv2.blur(image, (7, 7))[height // 2 :]])


SHORT_FIRST = preset("condinst_nano", short_side=96, long_side=160)
X86 = ("x86_64", "AMD64")
PILLOW = int(PIL.__version__.partition(".")[0])
MIN_SCALE = override(SHORT_FIRST, resize_rule="min_scale")


@pytest.mark.parametrize(
    ("size", "config", "canvas"),
    [
        pytest.param((70, 91), SHORT_FIRST, None, id="enlarge"),
        pytest.param((48, 72), SHORT_FIRST, None, id="enlarge to twice the size"),
        pytest.param((401, 333), SHORT_FIRST, None, id="shrink an odd size"),
        pytest.param((96, 160), SHORT_FIRST, None, id="leave as it is"),
        pytest.param((87, 320), SHORT_FIRST, None, id="the longer side is the limit"),
        pytest.param((600, 90), SHORT_FIRST, None, id="shrink a tall one, rows first"),
        pytest.param((1, 1), SHORT_FIRST, None, id="one pixel"),
        pytest.param((1, 600), SHORT_FIRST, None, id="one row"),
        pytest.param((87, 320), MIN_SCALE, None, id="by the other rule a row more"),
        pytest.param((90, 120), SHORT_FIRST, (64, 96), id="down to a fixed canvas"),
        pytest.param((90, 120), SHORT_FIRST, (128, 192), id="on a fixed canvas"),
    ],
)
def test_network_input_is_that_of_the_package(
    size: tuple[int, int],
    config: CondInstConfig,
    canvas: tuple[int, int] | None,
    call: Call,
    request: pytest.FixtureRequest,
) -> None:
    image = noise(*size)
    pixels, canvas_of = network_image(image, config.input, canvas)
    images, sizes = stack_images([pixels], canvas_of)
    rgba = cv2.cvtColor(image, cv2.COLOR_BGR2RGBA)
    metadata = dictionary(Metadata(config, size=canvas))
    (found,) = call(["networkInput", rgba, list(size), metadata])
    assert (found["shape"], found["netSize"]) == (list(images.shape), sizes[0].tolist())
    difference = np.array(found["images"]).reshape(images.shape) - images.astype(int)
    # Pillow before 13 never takes rows first; on other CPUs OpenCV's kernels may round otherwise
    is_same = platform.machine() in X86 and (PILLOW >= 13 or "tall" not in request.node.name)
    assert np.abs(difference).max() <= (0 if is_same else 1)


def blobs(height: int, width: int) -> np.ndarray:
    """Probabilities of masks, smooth and at all borders: float32 [6, height, width]."""
    masks = np.random.default_rng(0).random((6, height, width), np.float32)
    masks = np.stack([np.clip(cv2.blur(mask, (5, 5)) * 4 - 1.5, 0, 1) for mask in masks])
    masks[2] = 0
    masks[3, :, : width // 2] = 0
    return masks


def rectangles(height: int, width: int) -> np.ndarray:
    """Probabilities 0 and 1, in all, upper, lower, left, right and inner cells: as `blobs`."""
    masks = np.zeros((6, height, width), np.float32)
    y, x = height // 2, width // 2
    masks[0] = masks[1, :y] = masks[2, y:] = masks[3, :, :x] = masks[4, :, x:] = 1
    masks[4, :5, x : x + 5] = 0
    masks[5, 5:y, 5:x] = 1
    return masks


@pytest.mark.parametrize("nms", ["box", "mask"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("size", "stride", "masks_of"), [((70, 91), 4, blobs), ((30, 40), 2, rectangles)]
)
def test_instances_are_those_of_the_package(
    nms: str, dtype: str, size: tuple[int, int], stride: int, masks_of: Call, call: Call
) -> None:
    config = override(SHORT_FIRST, nms=nms, mask_stride=stride)
    net_size, (height, width) = placement(size, config.input, None)
    masks = masks_of(height // stride, width // stride)
    boxes = np.array(
        [
            *([3, 4, 50, 60], [-5, -9, 400, 300], [10, 10, 20, 20], [9, 9, 9, 30]),
            *([400, 5, 500, 50], [1, 1, 2, 2], [0, 0, 5, 5]),
        ],
        np.float32,
    )
    masks = np.concatenate([masks, masks[:1]])
    outputs = {
        "num_detections": np.array([6], np.int32),  # the last slot is not used
        "boxes": boxes[None],
        "scores": np.linspace(0.9, 0.1, 7, dtype=np.float32)[None],
        "labels": np.arange(7, dtype=np.int32)[None],
        "masks": masks.astype(dtype)[None],
    }
    placed = PlacedImage(np.zeros((*size, 3), np.uint8), net_size, (height, width))
    expected = instances_from_outputs(BatchOutputs(outputs), 0, placed, config)
    tensors = {
        name: {
            "data": array.view(np.uint16) if array.dtype == np.float16 else array,
            "dims": array.shape,
        }
        for name, array in outputs.items()
    }
    given = {"netSize": list(net_size), "imageSize": list(size)}
    (found,) = call(["instancesFromOutputs", tensors, given, dictionary(Metadata(config))])
    assert 4 <= len(found) == len(expected)
    assert [one["label"] for one in found] == expected.labels.tolist()
    assert (np.array([one["score"] for one in found]) == expected.scores).all()
    assert (np.array([one["box"] for one in found]) == expected.boxes).all()
    for one, instance in zip(found, expected, strict=True):
        assert (mask_from_runs(one["segmentation"]) == instance.mask).all()


def test_metadata_is_read_or_the_reason_is_said(demo_folder: Path, call: Call) -> None:
    plain = (demo_folder / "nuclei.onnx").read_bytes()
    props = {prop.key: prop.value for prop in onnx.load_model_from_string(plain).metadata_props}
    metadata = Metadata(SHORT_FIRST)
    files = {
        "is not an ONNX file": [b"\x89PNG\r\n", plain[:-7]],
        "has no metadata": [with_props({}), with_props({"author": "somebody"}), b""],
        "is not of contract 1, --graph full and batch 1": [
            with_props(replace(metadata, **change).to_props())
            for change in ({"graph": "detector"}, {"batch": 2}, {"contract": 2})
        ],
    }
    contents = [plain, with_props(metadata.to_props()), *sum(files.values(), [])]
    arrays = [np.frombuffer(content, np.uint8) for content in contents]
    shipped, written, *errors = call(*(["readMetadata", array] for array in arrays))
    assert shipped == json.loads(props["condinst"]) and written == dictionary(metadata)
    reasons = [reason for reason, group in files.items() for _ in group]
    for reason, found in zip(reasons, errors, strict=True):
        assert reason in found["error"]


def with_props(props: dict[str, str]) -> bytes:
    """A model file without a graph worth the name."""
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.helper.set_model_props(model, props)
    return model.SerializeToString()


@pytest.mark.parametrize("example", ["node", "web"])
def test_a_lock_file_names_no_registry(example: str) -> None:
    packages = json.loads((EXAMPLES / example / "package-lock.json").read_text())["packages"]
    wanted = json.loads((EXAMPLES / example / "package.json").read_text())["dependencies"]
    assert packages.pop("")["dependencies"] == wanted and len(packages) >= len(wanted)
    for package in packages.values():
        assert "integrity" in package and "resolved" not in package


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example, with its packages."""
    return install_example("node", tmp_path_factory.mktemp("javascript"))


def run(example: Path, model: Path, image: Path) -> Path:
    """Run the example in the folder of the image; the instances it writes."""
    output = image.with_suffix(".json")
    command = ("node", example / "segment.mjs", model, image.name, "-o", output.name)
    done = run_without_package(*command, cwd=image.parent)
    assert done.returncode == 0, done.stderr
    assert f"{len(json.loads(output.read_text()))} instances in " in done.stdout
    return output


@pytest.mark.slow
def test_node_finds_the_instances_of_the_pipeline(
    example: Path, demo_folder: Path, tmp_path: Path
) -> None:
    model, path = demo_folder / "nuclei.onnx", write_nuclei_png(tmp_path)
    assert assert_same_instances(run(example, model, path), model, path, exact=False) == 156


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "least"), [(101, 143, 5), (519, 695, 50), (0, 0, 0)]
)  # enlarged, shrunk from odd sides, and a picture without instances
def test_node_resizes_as_the_pipeline(
    example: Path,
    demo_folder: Path,
    nuclei_onnx: Path,
    tmp_path: Path,
    height: int,
    width: int,
    least: int,
) -> None:
    picture = read_image(demo_folder / "nuclei.jpg")
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), picture[:height, :width] if height else np.zeros_like(picture))
    found = run(example, nuclei_onnx, path)
    count = assert_same_instances(found, nuclei_onnx, path, exact=False)
    assert count >= least and bool(count) == bool(least)


@pytest.mark.slow
def test_node_reads_jpeg(example: Path, demo_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(demo_folder / "nuclei.jpg", tmp_path))
    found = json.loads(run(example, demo_folder / "nuclei.onnx", path).read_text())
    assert abs(len(found) - 156) <= 3  # another decoder: a grey level more or less
    assert found[0]["segmentation"]["size"] == [520, 696]
