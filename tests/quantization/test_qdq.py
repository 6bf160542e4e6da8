"""int8 files: what is quantised and how, what stays float, and what is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import build_condinst
from condinst_infer.quantization.agreement import Reference, agreement, feeds_of
from condinst_infer.quantization.qdq import Quantizer, fold_batch_norms
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.trt import build
from condinst_infer.verification.compare import compare

STAINED = Path(__file__).parents[1] / "data" / "nuclei" / "stained.jpg"
FLOAT = ("fcos/class_logits", "fcos/box_regression", "fcos/controller", "mask_branch/output")


def feeds(path: Path, sources: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    return feeds_of(sources, OrtSession(path).metadata.config.input, None)


def noise(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [
        np.kron(rng.integers(0, 256, (4, 6, 3), np.uint8), np.ones((25, 25, 1), np.uint8))
    ] * count


@pytest.fixture(scope="module", params=["cpu", "tensorrt"])
def written(
    request: pytest.FixtureRequest, nano_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Quantizer, Path]:
    """Target, quantizer and int8 file of the nano network."""
    path = tmp_path_factory.mktemp("int8") / f"{request.param}.onnx"
    quantizer = Quantizer(nano_onnx, feeds(nano_onnx, noise(2)), target=request.param)
    quantizer.write(path)
    return request.param, quantizer, path


class Graph:
    """An int8 file, to be asked about."""

    def __init__(self, path: Path) -> None:
        self.proto = onnx.load(path)
        self.nodes = list(self.proto.graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.arrays = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def pair(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that dequantise and quantise what is read as `name`."""
        dequantize = self.maker.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return []
        return [dequantize, *filter(None, [self.maker.get(dequantize.input[0])])]

    def int8_layers(self) -> list[str]:
        return [node.name for node in self.of("Conv") if self.pair(node.input[1])]


def test_convolutions_are_int8_and_predictors_are_not(written: tuple[str, Quantizer, Path]) -> None:
    target, quantizer, path = written
    graph = Graph(path)
    convolutions = {node.name: node for node in graph.of("Conv")}
    quantised = set(graph.int8_layers())
    assert set(convolutions) - quantised == {n for n in convolutions if n.startswith(FLOAT)}
    assert (
        quantised == {name for name in quantizer.layers if "/Conv" in name} and len(quantised) > 40
    )
    stored = {node.input[0] for node in graph.of("QuantizeLinear")}
    for name, node in convolutions.items():
        if name not in quantised:
            assert node.output[0] not in stored
            continue
        assert graph.pair(node.input[0]), name
        dequantize = graph.pair(node.input[1])[0]
        weight, scale, zero = (graph.arrays[x] for x in dequantize.input)
        assert weight.dtype == np.int8 and scale.shape == (len(weight),) and not zero.any()
        assert np.abs(weight).max() == 127
        if len(node.input) == 3:  # TensorRT wants a float bias, ONNX Runtime one of 32 bits
            assert bool(graph.pair(node.input[2])) == (target == "cpu")
    assert OrtSession(path).metadata.precision == "int8"
    assert OrtSession(path).metadata.int8_for == target


def test_zero_points_are_those_of_the_target(written: tuple[str, Quantizer, Path]) -> None:
    target, _, path = written
    graph = Graph(path)
    zeros = [graph.arrays[node.input[2]] for node in graph.of("QuantizeLinear")]
    kind = np.uint8 if target == "cpu" else np.int8
    assert zeros and all(zero.dtype == kind and zero.shape == () for zero in zeros)
    assert any(zeros) == (target == "cpu")
    zero_of = {node.input[0]: graph.arrays[node.input[2]] for node in graph.of("QuantizeLinear")}
    assert zero_of["backbone/MaxPool"] == 0  # nothing is spent on what a ReLU takes away
    assert (zero_of["neck/Add"] == 0) == (target == "tensorrt")
    relus = [node.name for node in graph.of("Relu") if "/" in node.name]
    assert bool(relus) == (target == "tensorrt")  # uint8 ends at 0, and needs none


def test_sums_are_quantised_where_the_target_wants_it(written: tuple[str, Quantizer, Path]) -> None:
    target, quantizer, path = written
    graph = Graph(path)
    sums = [node for node in graph.of("Add") if node.name in quantizer.layers]
    assert len(sums) > 8
    for node in sums:
        main, shortcut = (graph.pair(name) for name in node.input)
        source = graph.maker[main[1].input[0] if main else node.input[0]]
        assert shortcut
        assert bool(main) == (target == "cpu" or source.op_type != "Conv"), node.name
    if target == "cpu":  # TensorRT does not need it; its file has it where a convolution reads it
        resized = [node for node in graph.of("Resize") if node.name.startswith("neck/")]
        assert resized and all(graph.pair(node.input[0]) for node in resized)
    smooth = [node for node in graph.of("Resize") if node.name.startswith("mask_branch/")]
    assert smooth and not any(graph.pair(node.input[0]) for node in smooth)


def test_no_pair_is_without_a_reader_and_the_order_stays(
    written: tuple[str, Quantizer, Path], nano_onnx: Path
) -> None:
    graph, before = Graph(written[2]), Graph(nano_onnx)
    read = {name for node in graph.nodes for name in node.input}
    pairs = graph.of("QuantizeLinear", "DequantizeLinear")
    assert pairs and all(node.output[0] in read for node in pairs)
    assert set(graph.arrays) <= read
    for part in ("backbone/", "neck/", "fcos/", "mask_branch/"):  # levels stay in their order
        convolutions = [
            [node.name for node in found.of("Conv") if node.name.startswith(part)]
            for found in (before, graph)
        ]
        assert convolutions[0] == convolutions[1] != []
    names = {node.name for node in graph.nodes}
    lost = {n.op_type for n in before.nodes if n.name not in names}
    assert lost == (
        {"BatchNormalization", "Relu"} if written[0] == "cpu" else {"BatchNormalization"}
    )
    assert graph.proto.functions == before.proto.functions
    assert graph.proto.opset_import == before.proto.opset_import


def test_folded_batch_norms_change_no_result_and_stay_in_float32(
    nano_onnx: Path, tmp_path: Path
) -> None:
    proto = onnx.load(nano_onnx)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:  # statistics that are not those of a new network
        if any(
            tensor.name in node.input[1:] for node in proto.graph.node if "Batch" in node.op_type
        ):
            array = numpy_helper.to_array(tensor)
            varied = (array + rng.uniform(0.1, 0.4, array.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(varied, tensor.name))
    onnx.save(proto, tmp_path / "before.onnx")
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) >= 12
    fold_batch_norms(proto)
    onnx.save(proto, tmp_path / "after.onnx")
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    report = compare(tmp_path / "before.onnx", tmp_path / "after.onnx")
    assert report.ok, str(report)


def test_sizes_are_read_where_it_is_float(written: tuple[str, Quantizer, Path]) -> None:
    graph = Graph(written[2])
    sizes = [node for node in graph.of("Shape") if node.name.startswith("fcos/")]
    assert len(sizes) >= 3
    for node in sizes:  # OpenVINO computes an int8 convolution wrongly if its size is read
        assert node.input[0].startswith(("fcos/class_logits/Conv", "fcos/box_regression"))


def test_only_the_layers_named_are_quantised(
    written: tuple[str, Quantizer, Path], tmp_path: Path
) -> None:
    _, quantizer, _ = written
    layer = quantizer.layers[9]
    quantizer.write(tmp_path / "one.onnx", [layer])
    assert Graph(tmp_path / "one.onnx").int8_layers() == [layer]
    quantizer.write(tmp_path / "none.onnx", [])
    assert not Graph(tmp_path / "none.onnx").of("QuantizeLinear", "DequantizeLinear")


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_trained_model_finds_the_same_in_int8(
    target: str, nuclei_onnx: Path, demo_folder: Path, tmp_path: Path
) -> None:
    images = [demo_folder / "nuclei.jpg", STAINED]
    inputs = feeds(nuclei_onnx, images)
    path = tmp_path / "int8.onnx"
    Quantizer(nuclei_onnx, inputs, target=target).write(path)
    reference = Reference(nuclei_onnx, inputs)
    found = agreement(reference.compare(path))
    assert found.disagreement_percent < 5 and found.mask_iou > 0.94 and found.detections > 60, (
        found
    )  # 3.4, 0.953
    report = compare(nuclei_onnx, path, images)
    assert report.ok and report.precision == "int8", str(report)
    itself = agreement(reference.compare(nuclei_onnx))
    assert (itself.disagreement_percent, itself.mask_iou, itself.lost, itself.new) == (
        pytest.approx(0, abs=1e-3),
        1,
        0,
        0,
    )


def test_what_is_no_float32_file_or_target_is_refused(
    written: tuple[str, Quantizer, Path], nano_onnx: Path
) -> None:
    with pytest.raises(ConfigError, match="is int8; int8 is made of fp32"):
        Quantizer(written[2], [], target="cpu")
    with pytest.raises(ConfigError, match="must be one of cpu, tensorrt"):
        Quantizer(nano_onnx, [], target="gpu")


@pytest.mark.parametrize("graph", ["full", pytest.param("detector", marks=pytest.mark.slow)])
def test_tensorrt_rtx_builds_it(
    graph: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

    def no_gpu() -> None:
        raise SessionError("there is no GPU.")

    monkeypatch.setattr(build, "Device", no_gpu)
    source: Path = request.getfixturevalue("nano_onnx" if graph == "full" else "detector_onnx")
    path = tmp_path / "int8.onnx"
    Quantizer(source, feeds(source, noise(1)), target="tensorrt").write(path)
    shapes = {"min_shape": (1, 64, 64), "opt_shape": (1, 96, 128), "max_shape": (2, 256, 256)}
    built = build.engine_from_onnx(path, runtime="tensorrt_rtx", **shapes)  # pyright: ignore
    assert len(built.engine) > 1_000_000 and built.sidecar.precision_built == "int8"


DEFORMABLE = {"backbone_type": "resnet50", "deform_stages": (False, True, True, True)}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", pytest.param("tensorrt", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("name", "changes"), [("condinst_rt_dla34", {}), ("condinst_nano", DEFORMABLE)]
)
def test_other_networks_are_quantised_too(
    name: str, changes: dict[str, Any], target: str, tmp_path: Path
) -> None:
    config = preset(name, short_side=64, long_side=96, **changes)
    model = with_trained_statistics(build_condinst(config))
    export_onnx(model, tmp_path / "fp32.onnx", size=(64, 96))
    (feed,) = feeds_of(noise(1), config.input, (64, 96))
    Quantizer(tmp_path / "fp32.onnx", [feed], target=target).write(tmp_path / "int8.onnx")
    graph = Graph(tmp_path / "int8.onnx")
    layers = graph.int8_layers()
    assert len(layers) > 30 and not any("/offset/" in layer for layer in layers)  # coordinates
    offsets = {node.output[0] for node in graph.of("Conv") if "/offset/" in node.name}
    assert bool(offsets) == bool(changes)
    assert not offsets & {node.input[0] for node in graph.of("QuantizeLinear")}
    assert OrtSession(tmp_path / "int8.onnx").run(feed)["num_detections"].all()
