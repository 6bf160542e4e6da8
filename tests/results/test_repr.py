"""The `repr` of public objects: one short line with a count, a size and a runtime."""

from pathlib import Path

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer import checkpoint
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.runtimes.openvino import OvSession
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.runtimes.tensorrt import TrtSession
from condinst_infer.serving.triton.model import TritonSession
from condinst_infer.video.sources import open_source
from engines.emulator import Emulator
from tests.support.fake_session import FakeSession
from tests.support.fake_tensorrt.device import built, install
from tests.support.numbered_source import Numbers, stream_of
from tests.support.results import instances, segmented


def test_instances_are_counted_by_class() -> None:
    masks = np.ones((3, 30, 40), bool)
    assert repr(instances(masks)) == "<Instances: 3 (2 cat, 1 dog) in 40 x 30 pixels>"
    assert repr(instances(masks[:0])) == "<Instances: 0 in 40 x 30 pixels>"


def test_instances_of_many_classes_and_in_gpu_memory_stay_one_line() -> None:
    zeros = np.zeros(8)
    many = ci.Instances(
        boxes=np.zeros((8, 4), np.float32),
        scores=zeros.astype(np.float32),
        labels=np.array([0, 1, 0, 1, 2, 3, 4, 5], np.int32),
        crops=[ci.CroppedMask(0, 0, np.zeros((0, 0), bool))] * 8,
        image_size=(520, 696),
        class_names=tuple("abcdef"),
        category_ids=tuple(range(6)),
        image=np.zeros((520, 696, 3), np.uint8),
        on_device={"boxes": None},
    )
    assert repr(many) == (
        "<Instances: 8 (2 a, 2 b, 1 c, 3 of other classes) in 696 x 520 pixels, also in GPU memory>"
    )


def test_a_cropped_mask_tells_its_corner_and_foreground() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:5] = True
    assert repr(ci.CroppedMask(7, 12, mask)) == (
        "<CroppedMask: 60 foreground pixels in 30 x 20, corner x=7, y=12>"
    )


def test_a_panoptic_segmentation_counts_its_segments() -> None:
    text = "<PanopticSegmentation: 2 thing and 2 stuff segments in 96 x 64 pixels>"
    assert repr(segmented()) == text


@pytest.mark.parametrize(
    ("seconds", "path", "text"),
    [
        (1.5, None, "<Frame 45: 16 x 9 pixels, at 1.500 s>"),
        (None, Path("a/b.png"), "<Frame 45: 16 x 9 pixels, a/b.png>"),
    ],
)
def test_a_frame_tells_its_place(seconds: float | None, path: Path | None, text: str) -> None:
    assert repr(ci.Frame(45, seconds, np.zeros((9, 16, 3), np.uint8), path)) == text


@pytest.mark.parametrize(
    ("live", "count", "text"),
    [
        (True, None, "<FrameStream: camera:0, live at 10 frames/s>"),
        (False, 120, "<FrameStream: camera:0, 120 frames at 10 frames/s>"),
        (False, None, "<FrameStream: camera:0, unknown number of frames at 10 frames/s>"),
    ],
)
def test_a_stream_tells_its_source(
    live: bool, count: int | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Numbers, "name", "camera:0", raising=False)
    monkeypatch.setattr(Numbers, "count", count)
    with stream_of(Numbers(1, live=live), len) as stream:
        assert repr(stream) == text


def test_a_stream_of_images_has_no_rate(photos: Path) -> None:
    source = open_source(photos, reconnect=0, max_pixels=10**6)
    with stream_of(source, len) as stream:
        assert repr(stream) == f"<FrameStream: {photos}, 3 frames>"


def test_a_session_of_onnxruntime_and_its_pipeline(nano_onnx: Path) -> None:
    text = f"<OrtSession {nano_onnx}: condinst_nano, 80 classes, fp32, any batch, any size; "
    session = OrtSession(nano_onnx, threads=1)
    assert repr(session) == text + "ONNX Runtime on cpu>"
    pipeline = ci.Pipeline(session)
    assert repr(pipeline) == f"<Pipeline of {session!r}>"
    pipeline.close()
    assert repr(session) == text + "ONNX Runtime on cpu, closed>"


def test_a_static_panoptic_detector_tells_its_sizes(panoptic_checkpoint: Path) -> None:
    config = checkpoint.load(panoptic_checkpoint).config
    session = FakeSession(config=config, size=(96, 160), batch=2, graph="detector")
    assert session.metadata.describe() == (
        "condinst_nano, 80 classes, 3 kinds of stuff, fp32, detector graph, batch 2, "
        "160 x 96 pixels"
    )


def test_one_class_is_in_the_singular(demo_folder: Path) -> None:
    text = repr(ci.load(demo_folder / "nuclei.onnx"))
    assert ", 1 class, fp32, " in text and "\n" not in text


def test_a_session_of_openvino(bright_model: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    session = OvSession(bright_model, precision="fp32", threads=1)
    assert repr(session).startswith(f"<OvSession {bright_model}: ")
    assert repr(session).endswith("; OpenVINO on cpu>")
    session.close()
    assert repr(session).endswith("; OpenVINO on cpu, closed>")


def test_a_session_of_pytorch(nano_checkpoint: Path) -> None:
    session = TorchSession(checkpoint.load(nano_checkpoint))
    text = "<TorchSession: condinst_nano, 80 classes, fp32, any batch, any size; PyTorch"
    assert repr(session) == f"{text} on cpu>"
    session.close()
    assert repr(session) == f"{text}, closed>"


def test_an_engine_and_its_pipeline(
    cuda_emulator: Emulator, nano_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = install(monkeypatch).__version__
    session = TrtSession(built(nano_onnx, tmp_path, min_shape=(1, 64, 64), max_shape=(3, 192, 192)))
    text = f"<TrtSession {session.path}: condinst_nano, 80 classes, fp32, any batch, any size; "
    assert repr(session) == f"{text}tensorrt {version} on GPU 0>"
    with ci.Pipeline(CudaRunner(session, session.device)) as pipeline:
        assert repr(pipeline) == f"<Pipeline of {session!r}>"
    assert repr(session) == f"{text}tensorrt {version} on GPU 0, closed>"


def test_a_session_in_triton(bright_model: Path) -> None:
    session = TritonSession(None, "bright_network", OrtSession(bright_model).metadata)
    assert repr(session).startswith("<TritonSession: ")
    assert repr(session).endswith("; model bright_network in Triton>")
