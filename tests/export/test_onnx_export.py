"""Exported files fulfil the contract and compute what the official implementations compute."""

from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from condinst_infer import checkpoint
from condinst_infer.config.model import DetectConfig
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, ParityError
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.model.deploy import in_precision
from condinst_infer.processing.preprocess import read_image
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification.check_export import finish_export, verify_export
from condinst_infer.verification.compare import feeds_for
from condinst_infer.verification.intermediates import Lift, lift_for
from tests.support import goldens
from tests.support.goldens import SETS
from tests.support.shared_files import shared_file

Feeds = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=SETS)
def golden_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A golden model and its exported file."""
    path = tmp_path_factory.mktemp("golden") / f"{request.param}.onnx"
    export_onnx(goldens.model(request.param), path)
    return request.param, path


@pytest.mark.slow
def test_goldens_in_onnx_runtime(golden_file: tuple[str, Path]) -> None:
    name, path = golden_file
    session = OrtSession(path)
    for case in ("img0", "img1"):
        outputs = session.run(goldens.feeds(name, case))
        goldens.check_detections(name, case, outputs, 0)
        goldens.check_final(name, case, outputs, 0)
    outputs = session.run(goldens.feeds(name, "batch"))
    for slot in range(2):
        goldens.check_detections(name, f"batch{slot}", outputs, slot)
        goldens.check_final(name, f"batch{slot}", outputs, slot)
    if "dense0_det_scores" in goldens.arrays(name):
        session = dense_session(path)
        for i in range(2):
            values = session.run(None, goldens.feeds(name, f"img{i}"))
            keys = [output.name for output in session.get_outputs()]
            outputs = {n: np.asarray(v) for n, v in zip(keys, values, strict=True)}
            goldens.check_detections(name, f"dense{i}", outputs, 0)


def dense_session(path: Path) -> ort.InferenceSession:
    """The file with the bias of its class predictor raised, as in the dense cases."""
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.name.startswith("fcos/class_logits/Conv"))
    bias = next(t for t in proto.graph.initializer if t.name == node.input[2])
    raised = onnx.numpy_helper.to_array(bias) + np.float32(goldens.DENSE_SHIFT)
    bias.CopyFrom(onnx.numpy_helper.from_array(raised, bias.name))
    return ort.InferenceSession(proto.SerializeToString())


def random_feeds(sizes: list[tuple[int, int]], canvas: tuple[int, int]) -> Feeds:
    rng = np.random.default_rng(len(sizes))
    images = rng.integers(0, 256, (len(sizes), *canvas, 3), np.uint8)
    return {"images": images, "image_sizes": np.array(sizes, np.int32)}


def test_a_batch_equals_single_images_on_the_same_canvas(demo_folder: Path) -> None:
    session = OrtSession(demo_folder / "nuclei.onnx")
    feeds = random_feeds([(128, 160), (97, 131), (128, 160), (60, 60)], (128, 160))
    nuclei = read_image(demo_folder / "nuclei.jpg")
    for slot, (rows, columns) in enumerate(feeds["image_sizes"]):
        feeds["images"][slot, :rows, :columns] = nuclei[100 : 100 + rows, 200 : 200 + columns]
    feeds["images"][2] = 4  # the background alone
    together = session.run(feeds)
    counts = together["num_detections"].tolist()
    assert counts[2] == 0 < counts[3] < counts[0], counts
    for i in range(4):
        alone = session.run({name: value[i : i + 1] for name, value in feeds.items()})
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value[0], rtol=1e-4, atol=1e-4)


def test_the_padding_can_hold_anything(nano_onnx: Path) -> None:
    session = OrtSession(nano_onnx)
    feeds = random_feeds([(100, 90)], (128, 96))
    first = session.run(feeds)
    feeds["images"][:, 100:] = 255
    feeds["images"][:, :, 90:] = 7
    for name, value in session.run(feeds).items():
        np.testing.assert_array_equal(value, first[name])


def test_regression_and_centreness_are_one_convolution(nano_onnx: Path) -> None:
    graph = onnx.load(nano_onnx).graph
    merged = [n for n in graph.node if n.name.startswith("fcos/box_regression+centreness/Conv")]
    convolutions = [node for node in merged if node.op_type == "Conv"]
    assert len(convolutions) == len(preset("condinst_nano").strides)
    weight = next(t for t in graph.initializer if t.name == convolutions[0].input[1])
    assert weight.dims[0] == 5
    assert not any(
        "box_regression." in t.name or "centreness." in t.name for t in graph.initializer
    )


def test_nodes_and_tensors_are_named_after_modules(nano_onnx: Path) -> None:
    graph = onnx.load(nano_onnx).graph
    contract = {value.name for value in graph.output}
    for node in graph.node:
        assert all(name.startswith(node.name) for name in node.output if name not in contract) or (
            node.name.endswith("/Split")
        ), (node.name, node.output)
    parts = {node.name.split("/")[0] for node in graph.node if node.op_type == "Conv"}
    assert parts == {"backbone", "neck", "fcos", "mask_branch"}


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["full", "detector"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_contract(graph: str, precision: str, nano_checkpoint: Path, tmp_path: Path) -> None:
    model, path = checkpoint.load(nano_checkpoint), tmp_path / "model.onnx"
    export_onnx(model, path, graph=graph, precision=precision, size=(64, 96), batch=1)
    proto = onnx.load(path)
    assert {o.domain: o.version for o in proto.opset_import}[""] >= 19
    first = proto.graph.node[0]
    assert first.op_type == "Cast" and first.input[0] == "images"  # TensorRT wants it so
    session = OrtSession(path)  # checks names, types and shapes against the contract
    assert session.metadata.precision == precision and session.metadata.size == (64, 96)
    assert session.metadata.versions["torch"] and "/" not in str(session.metadata.versions)
    custom = [node for node in proto.graph.node if node.domain == "condinst"]
    assert {n.op_type for n in custom} == {f.name for f in proto.functions}
    assert len(custom) == (2 if graph == "full" else 0)
    for node in custom:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes.pop("plugin_namespace") == b"condinst" and attributes.pop("aot") == 1
        assert all(len(value) == 1 for value in attributes.values())
    weights = [t for t in proto.graph.initializer if len(t.dims) == 4]
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    assert weights and all(t.data_type == kind for t in weights)
    assert str(Path.cwd()).encode() not in path.read_bytes()  # no notes of the tracer
    verify_export(model, path)


def test_nodes_are_named_after_modules(nano_onnx: Path) -> None:
    proto = onnx.load(nano_onnx)
    found = [node.name for node in proto.graph.node]
    assert len(set(found)) == len(found)
    assert "backbone/stem/conv/Conv" in found
    assert not any(node.metadata_props for node in proto.graph.node)


def distances(outputs: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Largest difference of the tensors NMS can't reorder."""
    return {
        name: float(np.abs(np.asarray(outputs[name], np.float32) - reference[name]).max())
        for name in ("params_map", "mask_features")
    }


def test_fp16_is_at_most_twice_as_far_as_torch_in_fp16(
    nano_checkpoint: Path, tmp_path: Path
) -> None:
    model, path = checkpoint.load(nano_checkpoint), tmp_path / "half.onnx"
    export_onnx(model, path, graph="detector", precision="fp16", size=(96, 128), batch=2)
    feeds = random_feeds([(96, 128), (90, 77)], (96, 128))
    inputs = [torch.from_numpy(value) for value in feeds.values()]

    def torch_outputs(network: CondInst) -> dict[str, Any]:
        with torch.inference_mode():
            return {k: v.float().numpy() for k, v in network.detector(*inputs).items()}

    exact = torch_outputs(model)
    half = distances(torch_outputs(in_precision(model, "fp16")), exact)
    ours = distances(OrtSession(path).run(feeds), exact)
    for name, distance in ours.items():
        assert 0 < distance <= 2 * half[name], name


def test_fp16_rounds_neither_pixel_means_nor_distances(nano_checkpoint: Path) -> None:
    model = checkpoint.load(nano_checkpoint)
    with torch.no_grad():
        model.fcos.get_parameter("scales.0").fill_(1.0001)  # 1.0 in half precision
    half = in_precision(model, "fp16")
    assert half.pixel_mean.tolist() == model.pixel_mean.tolist() and half.pixel_mean[0] != 103.5
    assert half.fcos.get_parameter("scales.0") == model.fcos.get_parameter("scales.0")
    assert half.fcos.controller.weight.dtype == torch.float16 != model.fcos.controller.weight.dtype


def test_a_wrong_file_is_noticed(nano_checkpoint: Path, nano_onnx: Path, tmp_path: Path) -> None:
    model = checkpoint.load(nano_checkpoint)
    report = verify_export(model, nano_onnx)
    assert report.ok and {"class_logits", "nms", "mask_heads"} <= {r.stage for r in report.rows}
    proto = onnx.load(nano_onnx)
    tensor = next(t for t in proto.graph.initializer if "mask_branch.output.bias" in t.name)
    changed = onnx.numpy_helper.to_array(tensor) + np.float32(0.1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match="mask_features"):
        verify_export(model, tmp_path / "wrong.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (100, 128)}, "multiples of 32"),
        ({"batch": 0}, "at least 1"),
        ({"graph": "half"}, "full, detector"),
        ({"precision": "int8"}, "fp16"),
    ],
)
def test_impossible_options(
    options: dict[str, Any], message: str, nano_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_onnx(checkpoint.load(nano_checkpoint), tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


def write_wrong_labels(source: Path, path: Path) -> None:
    """Write a full graph whose used and unused slots have each other's labels."""
    proto = onnx.load(source)
    taken = next(node for node in proto.graph.node if "labels" in node.output)
    taken.input[1], taken.input[2] = taken.input[2], taken.input[1]  # Where: real and unused
    onnx.save(proto, path)


def test_a_wrong_gather_after_nms_is_noticed(
    nano_checkpoint: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    write_wrong_labels(nano_onnx, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match="outputs"):
        verify_export(checkpoint.load(nano_checkpoint), tmp_path / "wrong.onnx")


@pytest.fixture(scope="session")
def blind_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano network as training begins: no score reaches the threshold."""

    def write(path: Path) -> None:
        torch.manual_seed(0)
        sizes = {"short_side": 128, "long_side": 192, "max_detections": 20}
        checkpoint.save(build_condinst(preset("condinst_nano", **sizes)), path)

    return shared_file(tmp_path_factory, "blind/blind.safetensors", write)


@pytest.fixture(scope="session")
def blind_onnx(blind_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def write(path: Path) -> None:
        export_onnx(checkpoint.load(blind_checkpoint), path, size=(192, 256))

    return shared_file(tmp_path_factory, "blind/blind.onnx", write)


@pytest.mark.slow
def test_a_network_that_finds_nothing_is_compared_with_raised_scores(
    blind_checkpoint: Path, blind_onnx: Path
) -> None:
    model = checkpoint.load(blind_checkpoint)
    session = OrtSession(blind_onnx)
    (feeds, _) = feeds_for(session.metadata, session.metadata, ())
    assert not session.run(feeds)["num_detections"].any()
    report = verify_export(model, blind_onnx)
    assert report.ok and report.lifted and not report.warnings
    assert min(report.detections) >= 20
    assert {"nms", "outputs", "params", "mask_heads"} <= {row.stage for row in report.rows}
    assert "scores raised" in str(report)


@pytest.mark.slow
def test_raised_scores_show_a_fault_behind_the_threshold(
    blind_checkpoint: Path, blind_onnx: Path, tmp_path: Path
) -> None:
    write_wrong_labels(blind_onnx, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match="outputs"):
        verify_export(checkpoint.load(blind_checkpoint), tmp_path / "wrong.onnx")


@pytest.mark.slow
def test_where_nothing_can_be_compared_the_report_warns(
    blind_checkpoint: Path, blind_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "condinst_infer.verification.check_export.lift_for", lambda stages, detect: Lift()
    )
    report = verify_export(checkpoint.load(blind_checkpoint), blind_onnx)
    assert report.ok and report.detections == (0, 0)
    (warning,) = report.warnings
    assert warning.startswith("NMS and mask heads could not be compared")


@pytest.mark.parametrize("threshold", [0.05, 0.8])
@pytest.mark.parametrize("centreness", [2.0, -9.0])
def test_lifted_logits_pass_any_threshold(threshold: float, centreness: float) -> None:
    rng = np.random.default_rng(0)
    stages = {
        "class_logits": rng.normal(-20, 1, (2, 80, 300)),
        "centreness": rng.normal(centreness, 0.5, (2, 1, 300)),
    }
    detect = DetectConfig(score_threshold=threshold)
    lift = lift_for(stages, detect)
    assert lift.class_logits > 10 and (lift.centreness > 5) == (centreness < 0)
    scores = [1 / (1 + np.exp(-stages[name] - getattr(lift, name))) for name in Lift._fields]
    passed = (scores[0] * scores[1] > threshold).sum((1, 2))
    assert (passed >= detect.max_detections).all() and (passed < 24_000).all()  # of all pairs


def test_weights_that_are_not_finite_are_noticed(nano_checkpoint: Path, nano_onnx: Path) -> None:
    model = checkpoint.load(nano_checkpoint)
    with torch.no_grad():
        model.mask_branch.output.weight[0, 0] = torch.nan
    with pytest.raises(ParityError, match="mask_features differs by nan"):
        verify_export(model, nano_onnx)


def test_the_check_runs_each_side_once_per_input(
    nano_checkpoint: Path, nano_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(copy(nano_onnx, tmp_path / "model.onnx"))
    calls = {"sessions": 0, "heads": 0, "runs": 0}

    def counted(kind: str, owner: type, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            calls[kind] += 1
            return function(*args, **options)

        monkeypatch.setattr(owner, name, call)

    counted("sessions", ort.InferenceSession, "__init__")
    counted("runs", ort.InferenceSession, "run")
    counted("heads", CondInst, "heads")
    stages: list[str] = []
    finish_export(checkpoint.load(nano_checkpoint), path, on_stage=stages.append)
    # two inputs of the check and that of the self-test
    assert calls == {"sessions": 1, "heads": 3, "runs": 3}
    assert stages == ["checking", "self-test"]
