"""The OpenVINO session: the answers of ONNX Runtime, in the precision that was asked for."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from condinst_infer.contract.metadata import Metadata
from condinst_infer.runtimes import openvino as engine
from condinst_infer.runtimes.openvino import OvSession, cpu_precisions
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification.compare import precision_of, report_on

ov = pytest.importorskip("openvino")
BF16 = "bf16" in cpu_precisions()
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU can't compute in bf16")
Feeds = dict[str, np.ndarray]
SPLIT = [name for name in ("fp32", "bf16") if BF16 or name == "fp32"]


def feeds(n: int = 1, h: int = 64, w: int = 96, seed: int = 0) -> Feeds:
    """Coarse noise; each image is a little smaller than the one before it."""
    rng = np.random.default_rng(seed)
    images = [
        cv2.resize(rng.integers(0, 256, (h // 8, w // 8, 3), np.uint8), (w, h)) for _ in range(n)
    ]
    sizes = [[h - 3 * i, w - 7 * i] for i in range(n)]
    return {"images": np.stack(images), "image_sizes": np.array(sizes, np.int32)}


def nuclei(folder: Path, *sizes: tuple[int, int]) -> Feeds:
    """Corners of the demo photograph, black where they end. In all of black it finds nothing."""
    photo = cv2.imread(str(folder / "nuclei.jpg"))
    assert photo is not None
    images = np.zeros((len(sizes), 128, 160, 3), np.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:h, :w] = photo[:h, :w]
    valid = [(121, 157) if h else (128, 160) for h, _ in sizes]
    return {"images": images, "image_sizes": np.array(valid, np.int32)}


def assert_same(ours: Feeds, theirs: Feeds) -> None:
    """fp32 in two runtimes: they round differently."""
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape, name
        apart = np.abs(ours[name].astype(float) - array)
        if name == "masks":  # measured 1e-3: made-up weights give steep masks; 2e-7 of trained ones
            assert apart.max() < 1e-2 and apart.mean() < 1e-4  # the limit of `condinst compare`
        else:  # measured 2e-4 pixels; 1e-6 of the largest value
            worst = 1e-3 if name.endswith("boxes") else 1e-5 * max(1.0, float(np.abs(array).max()))
            assert apart.max(initial=0) <= worst, name


def layers(session: OvSession) -> list[Counter]:
    """(kind, precision) of what OpenVINO runs, in the front and in the tail."""
    assert session._idle is not None
    counts = []
    for part in session._idle.queue[0]:
        counts.append(Counter())
        for node in part.request.get_compiled_model().get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
            counts[-1][kind, precision] += 1
    return counts


@pytest.fixture(scope="module")
def nano(nano_onnx: Path) -> OvSession:
    return OvSession(nano_onnx, threads=1, workers=2)


def test_tensors_and_metadata_are_those_of_the_file(nano: OvSession, nano_onnx: Path) -> None:
    other = OrtSession(nano_onnx)
    assert nano.inputs == other.inputs and nano.outputs == other.outputs
    assert nano.metadata == other.metadata and nano.metadata.precision == "fp32"


def test_any_batch_and_canvas_gives_the_answer_of_onnxruntime(
    nano: OvSession, nano_onnx: Path
) -> None:
    other = OrtSession(nano_onnx)
    for shape in ((1, 64, 96), (3, 96, 64), (1, 64, 96), (2, 160, 128), (1, 32, 32)):
        given = feeds(*shape)
        answer = nano.run(given)
        assert_same(answer, other.run(given))
        assert answer["num_detections"].min() > 3, shape


def test_static_files_and_the_detector_cut_run_too(
    nano_static_onnx: Path, detector_onnx: Path
) -> None:
    given = feeds(2, 128, 160)
    assert_same(OvSession(nano_static_onnx).run(given), OrtSession(nano_static_onnx).run(given))
    # candidates of one score may change places
    ours, theirs = OvSession(detector_onnx).run(given), OrtSession(detector_onnx).run(given)
    report = report_on([(ours, theirs)], "fp32")
    assert report.ok and [row.stage for row in report.rows][-1] == "candidates", str(report)
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}


def test_images_of_a_batch_have_their_own_counts_and_some_none(demo_folder: Path) -> None:
    path = demo_folder / "nuclei.onnx"
    session, given = OvSession(path, threads=1), nuclei(demo_folder, (128, 160), (0, 0), (90, 70))
    answer = session.run(given)
    first, none, third = answer["num_detections"].tolist()
    assert none == 0 < third < first
    assert_same(answer, OrtSession(path).run(given))
    for i in range(3):
        alone = session.run({name: array[i : i + 1] for name, array in given.items()})
        assert_same(alone, {name: array[i : i + 1] for name, array in answer.items()})


@needs_bf16
def test_bf16_stays_near_fp32_on_a_trained_model(demo_folder: Path) -> None:
    path = demo_folder / "nuclei.onnx"
    exact, fast = OrtSession(path), OvSession(path, precision="bf16", threads=1)
    assert fast.metadata.precision == "bf16" and precision_of(exact, fast) == "bf16"
    given = nuclei(demo_folder, (128, 160), (100, 140))
    ours, theirs = exact.run(given), fast.run(given)
    report = report_on([(ours, theirs)], "bf16")
    assert report.ok and report.detections[0] > 15, str(report)
    assert np.abs(ours["scores"] - theirs["scores"]).max() > 1e-5  # it is another precision


@pytest.mark.parametrize("precision", SPLIT)
def test_all_convolutions_run_in_the_precision_and_nothing_after_them(
    nano_onnx: Path, precision: str
) -> None:
    session = OvSession(nano_onnx, precision=precision, threads=1)
    front, tail = layers(session)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(nano_onnx).graph.node)
    name = "f32" if precision == "fp32" else "bf16"
    assert {k: n for k, n in front.items() if k[0] == "Convolution"} == {
        ("Convolution", name): convolutions
    }
    assert "bf16" not in {precision for _, precision in tail} and tail["TopK", "f32"] > 0
    assert precision == "bf16" or "bf16" not in {precision for _, precision in front}
    assert not {"MatMul", "FullyConnected", "TensorIterator"} & {kind for kind, _ in front}


@needs_bf16
def test_a_model_without_convolutions_is_all_tail(bright_model: Path) -> None:
    given = feeds()
    session = OvSession(bright_model, precision="bf16")
    assert_same(session.run(given), OrtSession(bright_model).run(given))


def test_only_maps_that_are_needed_are_handed_over(nano: OvSession, nano_onnx: Path) -> None:
    """What predictors put out and what the controller reads, of three levels, and mask features."""
    names = [node.name for node in onnx.load(nano_onnx).graph.node if node.op_type == "Conv"]
    predictors = sum("fcos/" in name and "tower" not in name for name in names)
    assert nano._idle is not None
    front, tail = nano._idle.queue[0]
    maps = [
        tensor
        for tensor in tail.request.get_compiled_model().inputs
        if tensor.get_element_type() == ov.Type.f32
    ]
    assert len(maps) == predictors + 3 + 1 and all(
        len(tensor.partial_shape) == 4 for tensor in maps
    )
    assert len(front.outputs) < 30


class _Noise:
    """Calibration data for onnxruntime.quantization."""

    def __init__(self) -> None:
        self._left = [feeds(seed=i) for i in range(3)]

    def get_next(self) -> Feeds | None:
        return self._left.pop() if self._left else None


@pytest.fixture(scope="module")
def int8_onnx(nano_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model with its convolutions between QuantizeLinear and DequantizeLinear."""
    from onnxruntime import quantization

    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantization.quantize_static(
        nano_onnx,
        path,
        _Noise(),  # type: ignore[arg-type]
        per_channel=True,
        op_types_to_quantize=["Conv"],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    model = onnx.load(path)
    config = OrtSession(nano_onnx).metadata.config
    del model.metadata_props[:]
    for key, value in Metadata(config=config, precision="int8").to_props().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_int8_files_run_their_convolutions_in_8_bits(int8_onnx: Path) -> None:
    session = OvSession(int8_onnx, threads=1)
    assert session.metadata.precision == "int8"
    front, tail = layers(session)
    kinds = {precision for kind, precision in front if kind == "Convolution"}
    assert kinds <= {"u8", "i8"} and kinds, front
    assert {"bf16", "u8", "i8"}.isdisjoint(p for kind, p in tail if kind in ("MatMul", "TopK"))
    given = feeds()
    theirs = OrtSession(int8_onnx).run(given)["scores"]
    assert np.abs(session.run(given)["scores"] - theirs).max() < 0.05  # measured 0.0065


def test_runs_at_the_same_time_do_not_disturb_each_other(nano: OvSession) -> None:
    given = [feeds(1 + i % 2, 64 + 32 * (i % 3), 96, seed=i) for i in range(24)]
    alone = [nano.run(feed) for feed in given]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(nano.run, given), alone, strict=True):
            assert_same(ours, theirs)


def test_outputs_are_the_callers(nano: OvSession) -> None:
    first = nano.run(feeds(seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    nano.run(feeds(seed=2))
    nano.run(feeds(seed=3))
    assert_same(first, kept)
    assert all(array.flags.owndata and array.flags.writeable for array in first.values())


def test_images_may_be_a_view_that_can_not_be_written(nano: OvSession) -> None:
    whole = feeds(1, 64, 192)["images"]
    view = whole[:, :, ::2]
    view.flags.writeable = False
    sizes = np.array([[64, 96]], np.int32)
    expected = nano.run({"images": np.ascontiguousarray(view), "image_sizes": sizes})
    assert_same(nano.run({"images": view, "image_sizes": sizes}), expected)


def test_a_profile_is_the_mean_of_the_runs_after_the_first(
    nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO tells the mean of all runs of a request, the slow first one among them."""
    session = OvSession(nano_onnx, threads=1)
    nodes = session.profile(feeds(), 2)
    named = [node for node in nodes if node.name.startswith(("backbone/", "neck/", "fcos/"))]
    assert {"Convolution", "Loop"} <= {node.op for node in nodes} and len(named) > 40
    assert 0 < sum(node.ms for node in nodes) < 10_000
    runs = []

    def told(request: Any) -> list[Any]:
        mean = {1: 8.0, 4: 3.5}[len(runs)]  # 8 ms, then three runs of 2 ms
        times = {"a": mean, "fused": 0.0}
        return [
            SimpleNamespace(
                node_name=name, node_type=f"{request}", real_time=timedelta(milliseconds=ms)
            )
            for name, ms in times.items()
        ]

    class Fake:
        def __init__(self, kind: str) -> None:
            self.request = self
            self.kind = kind

        def __str__(self) -> str:
            return self.kind

        profiling_info = property(told)

    monkeypatch.setattr(session, "_compile", lambda _proto, PERF_COUNT: PERF_COUNT)
    monkeypatch.setattr(session, "_parts", lambda _models: [Fake("front"), Fake("tail")])
    monkeypatch.setattr(engine, "_run", lambda _parts, _feeds: runs.append(1))
    assert session.profile(feeds(), 3) == [("a", "front", 2.0), ("a", "tail", 2.0)]
