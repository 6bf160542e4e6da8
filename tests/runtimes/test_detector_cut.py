"""A full file on a GPU: cut before NMS in memory, and finished by our kernels."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import condinst_infer as ci
from condinst_infer.cuda.driver import Device
from condinst_infer.errors import MissingExtraError, ModelFileError
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.runtimes.ort import OrtSession
from tests.support.recorded_session import photograph

PAIRS = [
    ("nano_onnx", "detector_onnx"),
    pytest.param("mask_nms_onnx", "mask_nms_detector_onnx", marks=pytest.mark.slow),
    pytest.param("panoptic_onnx", None, marks=pytest.mark.slow),
    pytest.param("half_onnx", None, marks=pytest.mark.slow),
]


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A full export and the detector export of the same checkpoint."""
    from condinst_infer import checkpoint
    from condinst_infer.export.onnx_export import export_onnx

    def pair(full: str, detector: str | None) -> tuple[Path, Path]:
        if detector is not None:
            return request.getfixturevalue(full), request.getfixturevalue(detector)
        name = "panoptic_checkpoint" if full == "panoptic_onnx" else "nano_checkpoint"
        model = checkpoint.load(request.getfixturevalue(name))
        precision = "fp16" if full == "half_onnx" else "fp32"
        paths = tmp_path / "full.onnx", tmp_path / "detector.onnx"
        for path, graph in zip(paths, ("full", "detector"), strict=True):
            export_onnx(model, path, graph=graph, precision=precision)
        return paths

    return pair


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """ONNX Runtime's session of a GPU runs on the CPU; the streams it was given."""
    streams: list[int] = []

    def session(path: Path, *, device: str, **options: Any) -> OrtSession:
        if device == "cuda":
            assert options.pop("device_index") == 0
            streams.append(options.pop("stream"))
        return OrtSession(path, **options)

    monkeypatch.setattr("condinst_infer.runtimes.ort.OrtSession", session)
    yield streams


@pytest.mark.parametrize(("full", "detector"), PAIRS)
def test_the_cut_puts_out_what_the_detector_export_puts_out(
    full: str, detector: str | None, files: Callable[..., tuple[Path, Path]]
) -> None:
    full_path, detector_path = files(full, detector)
    expected = OrtSession(detector_path, threads=1)
    found = OrtSession(full_path, graph=detector_from_full(full_path), threads=1)
    assert found.metadata == expected.metadata and found.metadata.graph == "detector"
    assert {k: v.dtype for k, v in found.outputs.items()} == {
        k: v.dtype for k, v in expected.outputs.items()
    }
    rng = np.random.default_rng(0)
    sizes = np.array([[128, 192], [97, 150]], np.int32)
    images = rng.integers(0, 256, (2, 8, 12, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    ours, theirs = (s.run({"images": images, "image_sizes": sizes}) for s in (found, expected))
    half = found.metadata.precision == "fp16"
    for name in {"params_map", "mask_features", "semantic"} & set(theirs):
        apart = np.abs(ours[name].astype(np.float64) - theirs[name])
        assert apart.max() <= (2e-2 if half else 1e-4) * max(1.0, np.abs(theirs[name]).max()), name
    for one, other in zip(by_place(ours), by_place(theirs), strict=True):
        both = one.keys() & other.keys()
        # equal scores are ordered by what rounding makes of them, the last ones are cut off
        assert len(both) > (0.8 if half else 0.99) * len(other) > 0
        apart = np.abs([one[place] - other[place] for place in both]).max(0)
        assert apart[0] < (2e-2 if half else 5e-6) and apart[1:].max(initial=0) < (
            2 if half else 1e-3
        )


def by_place(outputs: dict[str, np.ndarray]) -> list[dict[tuple[int, int], np.ndarray]]:
    """Score and box of the candidates of each image, by location and label."""
    scores, boxes = outputs["candidate_scores"], outputs.get("candidate_boxes")
    found = []
    for i, row in enumerate(scores):
        places = zip(outputs["candidate_locations"][i], outputs["candidate_labels"][i], strict=True)
        box = np.zeros((len(row), 0)) if boxes is None else boxes[i]
        values = np.concatenate([row[:, None], box], 1).astype(np.float64)
        found.append(
            {(int(a), int(b)): v for (a, b), v in zip(places, values, strict=True) if v[0] > 0}
        )
    return found


@pytest.mark.parametrize(("full", "detector"), PAIRS[:3])
def test_load_takes_a_full_file_for_a_gpu(
    full: str,
    detector: str | None,
    device: Device,
    files: Callable[..., tuple[Path, Path]],
    on_cpu: list[int],
) -> None:
    """Its instances are those of the detector export, in batches of unequal counts too."""
    full_path, detector_path = files(full, detector)
    images = [photograph((128, 192)), np.zeros((128, 192, 3), np.uint8)]
    with ci.load(full_path, device="cuda") as ours, ci.load(detector_path, device="cuda") as theirs:
        assert [runner._stream.handle for runner in (ours._runner, theirs._runner)] == on_cpu  # type: ignore[union-attr]
        for one, other in zip(ours(images), theirs(images), strict=True):
            assert len(one) == len(other) and np.array_equal(one.labels, other.labels)
            assert np.abs(one.boxes - other.boxes).max(initial=0) < 1e-3
            assert (one.masks != other.masks).mean() < 1e-4
        assert len(ours(images[0])) > 3
        if full == "panoptic_onnx":
            found, expected = ours.panoptic(images[0]), theirs.panoptic(images[0])
            assert (found.id_map != expected.id_map).mean() < 1e-3 and len(found) > 0


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "edited.onnx"
    onnx.save(proto, str(path))
    return path


def test_a_file_whose_constants_a_tool_has_folded_is_cut_too(
    nano_onnx: Path, detector_onnx: Path, tmp_path: Path
) -> None:
    """What reshapes and transposes the controller's weights is gone then."""
    proto = onnx.load(nano_onnx)
    made = {output: node for node in proto.graph.node for output in node.output}
    values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    (product,) = [node for node in proto.graph.node if node.op_type == "MatMul"]
    transposed = made[product.input[1]]
    weight = values[made[transposed.input[0]].input[0]]
    folded = numpy_helper.from_array(np.ascontiguousarray(weight.reshape(len(weight), -1).T), "w")
    proto.graph.initializer.append(folded)
    product.input[1] = "w"
    proto.graph.node.remove(made[transposed.input[0]])
    proto.graph.node.remove(transposed)
    path = saved(proto, tmp_path)
    feeds = {
        "images": photograph((64, 96))[None],
        "image_sizes": np.array([[64, 96]], np.int32),
    }
    found = OrtSession(path, graph=detector_from_full(path), threads=1).run(feeds)
    expected = OrtSession(detector_onnx, threads=1).run(feeds)
    assert np.abs(found["params_map"] - expected["params_map"]).max() < 1e-4


def quantised(proto: onnx.ModelProto) -> None:
    (product,) = [node for node in proto.graph.node if node.op_type == "MatMul"]
    inputs = ["q", "scale", "zero"]
    proto.graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, ["dequantised"]))
    product.input[1] = "dequantised"


def without_nms(proto: onnx.ModelProto) -> None:
    (node,) = [node for node in proto.graph.node if node.op_type == "ClassNMS"]
    node.op_type = "OtherNMS"


def one_level_less(proto: onnx.ModelProto) -> None:
    (node,) = [node for node in proto.graph.node if node.name == "Add_29"]
    node.op_type = "Mul"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (quantised, "not the DequantizeLinear"),
        (without_nms, "it has 0 nodes ClassNMS"),
        (one_level_less, "GatherElements|one tensor is expected"),
    ],
)
def test_a_file_that_cannot_be_cut_is_refused_with_the_command(
    edit: Callable[[onnx.ModelProto], None], words: str, nano_onnx: Path, tmp_path: Path
) -> None:
    proto = onnx.load(nano_onnx)
    edit(proto)
    with pytest.raises(ModelFileError, match=words) as refused:
        detector_from_full(saved(proto, tmp_path))
    assert "condinst export MODEL.safetensors -o DETECTOR.onnx --graph detector" in str(
        refused.value
    )


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        detector_from_full(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        detector_from_full(tmp_path / "text.onnx")


def test_without_onnx_the_error_names_the_extra(
    nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"condinst-infer\[gpu\]"):
        detector_from_full(nano_onnx)


@pytest.mark.slow
def test_the_trained_model_finds_the_same_nuclei_on_a_gpu(
    device: Device, nuclei_onnx: Path, demo_folder: Path, on_cpu: list[int]
) -> None:
    image = str(demo_folder / "nuclei.jpg")
    with ci.load(nuclei_onnx) as whole, ci.load(nuclei_onnx, device="cuda") as ours:
        expected, found = whole(image), ours(image)
    assert len(found) == len(expected) > 30
    apart = np.abs(found.boxes[:, None] - expected.boxes).max(2).min(1)
    assert np.median(apart) < 0.5  # pixels: resized by a kernel that differs by a grey level
