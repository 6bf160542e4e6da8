"""Files in standard operators: what is in them, and that they compute what the plain file does."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from condinst_infer.contract.metadata import metadata_from_props
from condinst_infer.contract.tensors import contract_outputs
from condinst_infer.errors import ParityError
from condinst_infer.runtimes.openvino import core
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.trt import build
from condinst_infer.verification import self_test
from condinst_infer.verification.compare import match_slots
from condinst_infer.verification.rewritten import write_standard_ops

Arrays = dict[str, np.ndarray]
STATIC: dict[str, Any] = {"size": (96, 128), "batch": 2}
QUICK = ("nano_onnx",)
FILES = ("nano_onnx", "mask_nms_onnx", "panoptic_onnx")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (name, kind), id=f"{name}-{kind}", marks=[pytest.mark.slow] * (name not in QUICK)
        )
        for name in FILES
        for kind in ("dynamic", "static")
    ],
)
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A plain file, and the one in standard operators."""
    name, kind = request.param
    plain = request.getfixturevalue(name)
    path = tmp_path_factory.mktemp("standard") / f"{kind}.onnx"
    assert write_standard_ops(plain, path, **STATIC if kind == "static" else {}).ok
    return plain, path


def feeds() -> Arrays:
    """Two images of unequal size."""
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), np.uint8)
    images = images.repeat(8, 1).repeat(8, 2)
    return {"images": images, "image_sizes": np.array([[96, 128], [90, 77]], np.int32)}


def props(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    """Each instance of one is one of the other: boxes within 1e-3 pixels, masks within 1e-4."""
    np.testing.assert_array_equal(ours["num_detections"], theirs["num_detections"])
    assert ours["num_detections"].min() > 5
    for i, count in enumerate(ours["num_detections"]):
        pairs = match_slots(ours, theirs, i)
        assert len(pairs) == count
        for a, b in pairs:
            for name, most in (("boxes", 1e-3), ("scores", 1e-5), ("masks", 1e-4)):
                apart = np.abs(ours[name][i, a] - theirs[name][i, b]).max()
                assert apart <= most, (name, apart)
    if "semantic" in ours:
        np.testing.assert_allclose(ours["semantic"], theirs["semantic"], rtol=0, atol=1e-4)


def test_operators_shapes_and_metadata(files: tuple[Path, Path]) -> None:
    model = onnx.load(files[1])
    assert [opset.domain for opset in model.opset_import] == [""] and not model.functions
    nodes = list(all_nodes(model.graph))
    assert not any(node.domain or node.op_type == "Clip" for node in nodes)
    metadata = metadata_from_props(props(files[1]), files[1])
    assert metadata.standard_ops and "standard operators" in metadata.describe()
    assert [value.name for value in model.graph.output] == list(contract_outputs(metadata))
    if files[1].stem == "static":
        assert (metadata.size, metadata.batch) == ((96, 128), 2)
        kinds = {node.op_type for node in nodes}
        assert not kinds & {"Loop", "If", "Shape", "Range", "Identity", "CastLike"}
        values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
        sides = {value.name: value.type.tensor_type.shape.dim for value in values}
        assert {name for node in nodes for name in node.output} <= set(sides)
        assert all(side.HasField("dim_value") for dims in sides.values() for side in dims)
    else:
        plain = metadata_from_props(props(files[0]), files[0])
        assert (metadata.config, metadata.size) == (plain.config, None)


def test_the_self_test_stays_or_fits_the_fixed_size(tested_onnx: Path, tmp_path: Path) -> None:
    path, key = tmp_path / "standard.onnx", self_test.KEY
    write_standard_ops(tested_onnx, path)
    assert props(path)[key] == props(tested_onnx)[key]
    write_standard_ops(tested_onnx, path, **STATIC)
    new = self_test.self_test_from_props(props(path), path)
    assert new is not None and new.shape == (2, 96, 128) and min(new.counts) > 5 and not new.tied


@pytest.mark.slow
def test_a_file_that_fails_its_own_self_test_is_not_rewritten(
    tested_onnx: Path, tmp_path: Path
) -> None:
    proto = onnx.load(tested_onnx)
    tensor = next(t for t in proto.graph.initializer if "mask_branch.output.bias" in t.name)
    changed = onnx.numpy_helper.to_array(tensor) + np.float32(1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    for options in ({}, STATIC):
        with pytest.raises(ParityError, match="mean mask probabilities"):
            write_standard_ops(tmp_path / "wrong.onnx", tmp_path / "standard.onnx", **options)


def test_onnx_runtime_computes_the_same(files: tuple[Path, Path]) -> None:
    with closing(OrtSession(files[0])) as a, closing(OrtSession(files[1])) as b:
        assert_same(a.run(feeds()), b.run(feeds()))


def test_stock_openvino_computes_the_same(files: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    with closing(OrtSession(files[0])) as session:
        expected = session.run(feeds())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core().compile_model(core().read_model(files[1]), "CPU", settings)
    found = {port.get_any_name(): array for port, array in compiled(feeds()).items()}
    assert list(found) == list(expected)  # the contract's names, though it may know others too
    assert_same(expected, found)


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_rtx_builds_it(files: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    built = build.engine_from_onnx(files[1], runtime="tensorrt_rtx")
    assert len(built.engine) > 1_000_000


@pytest.mark.slow
def test_a_newer_opset_computes_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    newer = onnx.version_converter.convert_version(onnx.load(files[1]), 21)
    onnx.helper.set_model_props(newer, props(files[1]))
    onnx.save(newer, tmp_path / "newer.onnx")
    with closing(OrtSession(files[0])) as a, closing(OrtSession(tmp_path / "newer.onnx")) as b:
        assert_same(a.run(feeds()), b.run(feeds()))


# what somebody runs who has the file, OpenVINO, numpy and OpenCV
STOCK = """
import sys

import cv2
import numpy as np
import openvino

settings = {"INFERENCE_PRECISION_HINT": "f32"}
network = openvino.Core().compile_model(sys.argv[1], "CPU", settings)
image = cv2.imread(sys.argv[2])
scale = 640 / min(image.shape[:2])
rows, columns = (round(side * scale) for side in image.shape[:2])
images = np.zeros((1, -(-rows // 32) * 32, -(-columns // 32) * 32, 3), np.uint8)
images[0, :rows, :columns] = cv2.resize(image, (columns, rows))
found = network({"images": images, "image_sizes": np.array([[rows, columns]], np.int32)})
ours = {"condinst_infer", "onnx", "onnxruntime", "torch", "PIL"} & set(sys.modules)
print(int(found["num_detections"][0]), *ours)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [{}, {"size": (640, 864), "batch": 1}], ids=["any", "fixed"])
def test_openvino_alone_finds_the_nuclei(
    fixed: dict[str, Any], tmp_path: Path, demo_folder: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = tmp_path / "standard.onnx"
    write_standard_ops(demo_folder / "nuclei.onnx", path, **fixed)
    words = [sys.executable, "-I", "-c", STOCK, path, demo_folder / "nuclei.jpg"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.split(), done.stderr) == (["156"], "")
