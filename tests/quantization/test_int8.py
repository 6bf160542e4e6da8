"""`condinst export --precision int8`: what is measured, what stays float32, what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from condinst_infer import checkpoint
from condinst_infer.contract.metadata import props_from_onnx
from condinst_infer.errors import InputError, ParityError
from condinst_infer.evaluation.average_precision import LabelledImages
from condinst_infer.quantization import int8
from condinst_infer.quantization.agreement import Reference, agreement, feeds_of
from condinst_infer.quantization.qdq import Quantizer
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification import self_test
from tests.support.command_line import Run, assert_refused

DATA = Path(__file__).parents[1] / "data" / "nuclei"
BLOCK = "backbone/res3/0"


@pytest.fixture
def micrographs(demo_folder: Path, tmp_path: Path) -> Path:
    """The images of DATA/instances.json in one folder."""
    folder = tmp_path / "micrographs"
    folder.mkdir()
    for path in (demo_folder / "nuclei.jpg", DATA / "stained.jpg"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def uneven_onnx(nuclei_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, but one channel between two convolutions is 2000 times the others."""
    proto = onnx.load(nuclei_onnx)
    arrays = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}

    def scale(name: str, place: Any, factor: float) -> None:
        array = numpy_helper.to_array(arrays[name]).copy()
        array[place] *= factor
        arrays[name].CopyFrom(numpy_helper.from_array(array, name))

    first, second = (nodes[f"{BLOCK}/conv{i}/conv/Conv"] for i in (1, 2))
    for name in first.input[1:]:
        scale(name, 0, 2000)
    scale(second.input[1], (slice(None), 0), 1 / 2000)
    path = tmp_path_factory.mktemp("uneven") / "uneven.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, nuclei_onnx: Path) -> SimpleNamespace:
    """A model whose exports are the files in its `full` and `detector`."""

    def export_onnx(model: Any, path: Path, *, graph: str, **options: Any) -> None:
        model.asked.append(options | {"graph": graph})
        shutil.copy(model.static if options["batch"] else getattr(model, graph), path)

    monkeypatch.setattr(int8, "export_onnx", export_onnx)
    monkeypatch.setattr(int8, "verify_export", lambda model, path: None)
    config = OrtSession(nuclei_onnx).metadata.config
    return SimpleNamespace(config=config, full=nuclei_onnx, static=None, asked=[])


def made(network: Any, path: Path, images: Path, **options: Any) -> Any:
    return int8.export_int8(network, path, sorted(images.iterdir()), **options)


class Few(Quantizer):
    """Only some layers may be int8, which makes trying each alone faster."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        parts = ("backbone/res2", "backbone/res3", "neck/lateral")
        self.layers = tuple(layer for layer in self.layers if layer.startswith(parts))


@pytest.mark.slow
def test_layers_that_lose_too_much_stay_float(
    network: SimpleNamespace,
    uneven_onnx: Path,
    micrographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8, "Quantizer", Few)
    network.full = uneven_onnx
    (micrographs / "stained.jpg").unlink()
    report = made(network, tmp_path / "int8.onnx", micrographs, max_accuracy_drop=6.0)
    assert report.float_layers and report.agreement.disagreement_percent <= 6.0
    assert {f"{BLOCK}/conv1/conv/Conv", f"{BLOCK}/conv2/conv/Conv"} >= set(report.float_layers)
    proto = onnx.load(tmp_path / "int8.onnx")
    weights = {node.name: node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    for layer in report.float_layers:
        assert not weights[layer].endswith("DequantizeLinear_Output"), weights[layer]
    assert weights["backbone/res2/0/conv1/conv/Conv"].endswith("DequantizeLinear_Output")
    for line in (*report.float_layers, f"{len(report.float_layers)} of {report.layers} layers"):
        assert line in str(report)


def test_the_report_is_on_the_layers_that_were_chosen(
    network: SimpleNamespace, micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(work: Any, layers: tuple[str, ...]) -> float:
        work.quantizer.write(work.int8, layers)
        return 0.0 if len(layers) <= len(work.quantizer.layers) - 4 else 9.0

    monkeypatch.setattr(
        int8._LayerSearch, "accuracy_drop", loss
    )  # the last trial is of three, and fails
    monkeypatch.setattr(int8._LayerSearch, "_by_cost", lambda self: list(self.quantizer.layers))
    path = tmp_path / "int8.onnx"
    report = made(network, path, micrographs)
    assert len(report.float_layers) == 4
    feeds = feeds_of(sorted(micrographs.iterdir()), network.config.input, None)
    assert agreement(Reference(network.full, feeds).compare(path)) == report.agreement


@pytest.mark.slow
def test_a_bound_that_cant_be_met_is_refused(
    network: SimpleNamespace, micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every layer costs something, so that is what each trial says
    monkeypatch.setattr(int8._LayerSearch, "_by_cost", lambda self: list(self.quantizer.layers))
    path = tmp_path / "out" / "int8.onnx"
    path.parent.mkdir()
    with pytest.raises(ParityError, match=r"int8 loses [\d.]+ percent .* than the 0 allowed"):
        made(network, path, micrographs, max_accuracy_drop=0.0)
    assert not list(path.parent.iterdir())


def test_what_was_measured_is_in_the_file(
    network: SimpleNamespace, micrographs: Path, tmp_path: Path, condinst: Run
) -> None:
    path = tmp_path / "int8.onnx"
    report = made(network, path, micrographs, target="tensorrt")
    assert (report.images, report.float_layers, report.milliseconds) == (2, (), None)
    assert report.agreement.detections > 60 and report.bytes[1] < 0.6 * report.bytes[0]
    data = json.loads(condinst("info", path, "--json")[1])
    assert (data["precision"], data["int8_for"]) == ("int8", "tensorrt")
    assert data["int8"] == json.loads(json.dumps(report.to_dict()))
    for word in ("tensorrt", "mask IoU", "0 of 61 layers", "2 images"):
        assert word in f"{report} mask IoU" and data["int8"]["layers"] == 61
    # the golden outputs are its own: float32's would be too far for any limit of precision
    expected = self_test.self_test_from_props(props_from_onnx(path.read_bytes(), path), path)
    assert expected is not None and not expected.tied
    self_test.check(OrtSession(path), expected)
    fp32 = self_test.self_test_of(OrtSession(network.full), OrtSession(path).metadata)
    assert fp32.rows != expected.rows


@pytest.mark.slow
def test_golden_outputs_of_int8_say_whose_they_are(
    network: SimpleNamespace, nuclei_onnx: Path, micrographs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    made(network, path, micrographs)
    session = OrtSession(path)
    expected = self_test.self_test_of(session, session.metadata)

    class Lower(OrtSession):
        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            outputs = super().run(feeds)
            return outputs | {"scores": outputs["scores"] * 0.8}

    with pytest.raises(ParityError, match="ONNX Runtime had at export"):
        self_test.check(Lower(path), expected)


@pytest.mark.slow
def test_mask_ap_is_the_judge_where_there_are_annotations(
    network: SimpleNamespace, micrographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = LabelledImages(DATA / "instances.json", micrographs)
    report = made(network, tmp_path / "a.onnx", micrographs, truth=truth, max_accuracy_drop=3.0)
    assert report.mask_ap[0] > 15 and report.mask_ap[0] - report.mask_ap[1] <= 3
    assert f"float32 {report.mask_ap[0]:.2f}" in str(report)
    ap = iter([50.0, 48.0, *[47.0] * 20])
    monkeypatch.setattr(int8, "_mask_ap", lambda truth, path: next(ap))
    monkeypatch.setattr(int8._LayerSearch, "_by_cost", lambda self: list(self.quantizer.layers))
    with pytest.raises(
        ParityError, match=r"loses 2\.00 points of mask AP .* than the 0\.5 allowed"
    ):
        made(network, tmp_path / "b.onnx", micrographs, truth=truth)


@pytest.mark.slow
def test_another_cut_and_batch_keep_the_same_layers_float(
    network: SimpleNamespace, nano_onnx: Path, detector_onnx: Path, tmp_path: Path
) -> None:
    network.full, network.detector = nano_onnx, detector_onnx
    network.config = OrtSession(nano_onnx).metadata.config
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    path = tmp_path / "detector.onnx"
    options: dict[str, Any] = {
        "graph": "detector",
        "max_accuracy_drop": 100.0,
        "target": "tensorrt",
    }
    report = int8.export_int8(network, path, [image], **options)  # pyright: ignore
    metadata = OrtSession(path).metadata
    assert (metadata.graph, metadata.precision) == ("detector", "int8")
    assert [asked["graph"] for asked in network.asked] == ["full", "detector"]
    names = {node.name for node in onnx.load(path).graph.node}
    assert {name for name in names if name.startswith("fcos/controller")}
    quantised = [node for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) > 30 and report.layers > 50


@pytest.mark.slow
def test_a_static_batch_is_calibrated_as_it_is(
    network: SimpleNamespace, nano_static_onnx: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    network.full, network.static = nano_onnx, nano_static_onnx
    network.config = OrtSession(nano_onnx).metadata.config
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    path = tmp_path / "static.onnx"
    options: dict[str, Any] = {"size": (128, 160), "batch": 2, "max_accuracy_drop": 100.0}
    int8.export_int8(network, path, [image], **options)  # pyright: ignore
    metadata = OrtSession(path).metadata
    assert (metadata.size, metadata.batch, metadata.precision) == ((128, 160), 2, "int8")
    asked = [(a["size"], a["batch"]) for a in network.asked]
    assert asked == [((128, 160), None), ((128, 160), 2)]


def test_images_are_needed_readable_and_show_something(
    network: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    with pytest.raises(InputError, match="there are none"):
        int8.export_int8(network, path, [])  # pyright: ignore
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg is not an image"):
        int8.export_int8(network, path, [text])  # pyright: ignore
    with pytest.raises(InputError, match="finds nothing in the 1 calibration images"):
        black = np.full((64, 64, 3), 5, np.uint8)
        int8.export_int8(network, path, [black])  # pyright: ignore
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--for", "cpu"), ("--for is for int8 only",)),
        (("--max-accuracy-drop", "1"), ("--max-accuracy-drop is for int8 only",)),
        (("--precision", "int8"), ("--calibration IMAGES",)),
        (("--precision", "int8", "--calibration", "a.jpg", "--images", "b"), ("need each other",)),
        (
            ("--precision", "int8", "--calibration", "a.jpg", "--max-accuracy-drop", "-1"),
            ("at least 0",),
        ),
        (
            ("--precision", "int8", "--calibration", "a.jpg", "--max-accuracy-drop", "nan"),
            ("at least 0",),
        ),
    ],
)
def test_options_that_dont_fit_are_refused(
    options: tuple[str, ...], words: tuple[str, ...], condinst: Run, tmp_path: Path
) -> None:
    out = tmp_path / "x.onnx"
    assert_refused(condinst("export", "none.safetensors", "-o", out, *options), *words)


def test_the_command_measures_and_writes(
    network: SimpleNamespace,
    demo_folder: Path,
    micrographs: Path,
    condinst: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda path: network)
    path = tmp_path / "new" / "int8.onnx"
    command = ("export", demo_folder / "nuclei.safetensors", "-o", path, "--precision", "int8")
    status, out, err = condinst(*command, "--calibration", micrographs, "--limit", "1")
    assert status == 0 and "int8 for cpu, beside float32 on 1 images" in out
    assert "speed here:" in out and out.endswith(f"-> {path}\n")
    assert [p.name for p in path.parent.iterdir()] == ["int8.onnx"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(condinst(*command, "--calibration", empty), "there are no images")
    assert [asked["checkpoint_sha256"] != "" for asked in network.asked] == [True]
    assert int8.LIMIT == 64 and (int8.MAX_DISAGREEMENT, int8.MAX_AP_DROP) == (5, 0.5)
    assert "64" in (text := condinst("export", "--help")[1]) and "(default: 5)" in text


@pytest.mark.parametrize("needed", range(1, 12))
@pytest.mark.parametrize("most", [1, 5, 8, 10])
def test_fewest_finds_the_smallest_count(needed: int, most: int) -> None:
    asked: list[int] = []

    def enough(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert int8.fewest(enough, most) == (needed if needed <= most else None)
    assert max(asked) <= most and len(asked) == len(set(asked))
