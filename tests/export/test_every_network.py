"""Every preset and ablation, cut and precision, in every runtime, on trained statistics."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import props_from_onnx
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.quantization.qdq import Quantizer
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.runtimes.openvino import OvSession, core
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.trt import build
from condinst_infer.verification import self_test
from condinst_infer.verification.check_export import finish_export
from condinst_infer.verification.compare import (
    DETECTION_ROWS,
    ComparisonReport,
    compare,
    precision_of,
    report_on,
)
from condinst_infer.verification.rewritten import write_standard_ops
from tests.support.reduced_networks import network_names, reduced_network

QUICK = ("condinst_nano",)
SLOW = ("condinst_r101_dcn_bifpn_sem", "condinst_panoptic_r101_dcn")
SHAPES = {"min_shape": (1, 64, 64), "opt_shape": (1, 96, 128), "max_shape": (2, 192, 256)}
Feeds = dict[str, np.ndarray]


def marks(name: str, graph: str) -> list[pytest.MarkDecorator]:
    if name in QUICK:
        return [] if graph == "full" else [pytest.mark.slow]
    return [pytest.mark.slow if name in SLOW and graph == "full" else pytest.mark.long]


GRID = [
    pytest.param((name, graph), marks=marks(name, graph), id=f"{name}-{graph}")
    for name in network_names()
    for graph in ("full", "detector")
]


@pytest.fixture(scope="module", params=GRID)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CondInst, str, Path]]:
    """A network, the cut, and the folder of its files."""
    name, graph = request.param
    yield reduced_network(name), graph, tmp_path_factory.mktemp("network")


def exported(network: tuple[CondInst, str, Path], precision: str) -> Path:
    """The file of a network in a float precision, verified; kept for the tests that follow."""
    model, graph, folder = network
    path = folder / f"{precision}.onnx"
    if not path.exists():
        export_onnx(model, path, graph=graph, precision=precision)
        report = finish_export(model, path)
        assert report.ok and not report.lifted and not report.warnings
    return path


def quantised(network: tuple[CondInst, str, Path], target: str) -> Path:
    """The file of a network in int8, calibrated on the input of its self-test."""
    source = exported(network, "fp32")
    path = source.with_name(f"int8-{target}.onnx")
    if not path.exists():
        Quantizer(source, [feeds()], target=target).write(path)
    return path


def feeds() -> Feeds:
    """Two images of unequal size."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 3), np.uint8)
    images = images.repeat(8, 1).repeat(8, 2)
    return {"images": images, "image_sizes": np.array([[128, 160], [101, 90]], np.int32)}


def assert_near(report: ComparisonReport) -> None:
    """One int8 file finds much the same in two runtimes.

    Random masks have edges everywhere, and ten slots cut through hundreds of candidates: masks
    differ by up to 0.37, and 0.15 has no partner.
    """
    limits = {"detections": 0.35, "candidates": 0.35, "masks": 0.6, "boxes": 20.0, "scores": 0.1}
    for row in report.rows:
        assert row.difference <= limits.get(row.stage, 0.25), str(report)


def stored(path: Path) -> self_test.SelfTest:
    found = self_test.self_test_from_props(props_from_onnx(path.read_bytes(), path), path)
    assert found is not None and sum(found.counts) > 0
    return found


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.long)])
def test_float_files_compute_what_torch_does(
    precision: str, network: tuple[CondInst, str, Path]
) -> None:
    path = exported(network, precision)
    expected = stored(path)
    assert not expected.tied
    with closing(OrtSession(path)) as session:
        self_test.check(session, expected)


def test_openvino_computes_what_torch_does(network: tuple[CondInst, str, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = exported(network, "fp32")
    with closing(OvSession(path)) as session:
        self_test.check(session, stored(path))


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_standard_operators_compute_the_same(
    static: bool, network: tuple[CondInst, str, Path], tmp_path: Path
) -> None:
    plain, path = exported(network, "fp32"), tmp_path / "standard.onnx"
    options = {"size": (128, 160), "batch": 2} if static else {}
    assert write_standard_ops(plain, path, **options).ok  # pyright: ignore[reportArgumentType]
    with closing(OrtSession(plain)) as a, closing(OrtSession(path)) as b:
        ours = a.run(feeds())
        assert report_on([(ours, b.run(feeds()))], precision_of(a, b)).ok
        expected = precision_of(a, b)
    pytest.importorskip("openvino", reason="openvino is not installed")
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {port.get_any_name(): array for port, array in compiled(feeds()).items()}
    assert set(found) == set(ours) and report_on([(ours, found)], expected).ok


def test_the_cut_in_memory_finds_the_same(network: tuple[CondInst, str, Path]) -> None:
    plain = exported(network, "fp32")
    graph = detector_from_full(plain)
    if network[1] == "detector":
        assert graph is None
        return
    with closing(OrtSession(plain)) as a, closing(OrtSession(plain, graph=graph)) as b:
        ours, config = a.run(feeds()), a.metadata.config
        found, names = full_from_detector(b.run(feeds()), config), list(b.outputs)
        assert set(found) == set(ours) and report_on([(ours, found)], precision_of(a, b)).ok
        expected = precision_of(a, b)
    pytest.importorskip("openvino", reason="openvino is not installed")
    model = core().read_model(graph)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(feeds())
    cut = full_from_detector({name: outputs[name] for name in names}, config)
    assert report_on([(ours, cut)], expected).ok


def test_int8_files_find_the_same_in_both_runtimes(network: tuple[CondInst, str, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    path = quantised(network, "cpu")
    with closing(OrtSession(path)) as a, closing(OvSession(path)) as b:
        ours, theirs = a.run(feeds()), b.run(feeds())
        assert_near(report_on([(ours, theirs)], precision_of(a, b)))
    beside = compare(exported(network, "fp32"), path)
    assert min(beside.detections) > 0 or not beside.after_nms
    # what is found says little: rounding moves the offsets of random deformable convolutions
    raw = [row for row in beside.rows if row.stage not in DETECTION_ROWS]
    assert len(raw) > 3 and all(row.ok for row in raw), str(beside)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "precision", ["fp32", "int8", pytest.param("fp16", marks=pytest.mark.long)]
)
def test_nvidias_parser_and_builder_take_it(
    precision: str, network: tuple[CondInst, str, Path]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    int8 = precision == "int8"
    path = quantised(network, "tensorrt") if int8 else exported(network, precision)
    built = build.engine_from_onnx(path, runtime="tensorrt_rtx", **SHAPES)  # pyright: ignore
    assert len(built.engine) > 100_000 and built.sidecar.precision_built == precision


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_deformable_network_of_real_size_gives_torchs_instances(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = with_trained_statistics(build_condinst(preset("condinst_r101_dcn_bifpn_sem")))
    export_onnx(model, path)
    report = finish_export(model, path)
    assert report.ok and min(report.detections) > 0
    expected = stored(path)
    assert not expected.tied
    for runtime in (OrtSession, OvSession):
        with closing(runtime(path)) as session:
            self_test.check(session, expected)
