"""What the OpenVINO session refuses and in which words, and the ways to it: `load` and verbs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from condinst_infer import load
from condinst_infer.config.class_names import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, MissingExtraError, ModelFileError, SessionError
from condinst_infer.runtimes import openvino as engine
from condinst_infer.runtimes.openvino import OvSession, cpu_precisions
from condinst_infer.runtimes.ort import OrtSession
from tests.support.bright_model import bright_config, changed, write_bright_model
from tests.support.command_line import Run, assert_refused

ov = pytest.importorskip("openvino")
BF16 = "bf16" in cpu_precisions()


def feeds(n: int = 1, h: int = 64, w: int = 96) -> dict[str, np.ndarray]:
    return {
        "images": np.full((n, h, w, 3), 200, np.uint8),
        "image_sizes": np.array([[h, w - 6]] * n, np.int32),
    }


def test_threads_and_workers_are_those_asked_for(bright_model: Path) -> None:
    threads = {"INFERENCE_NUM_THREADS": 3 * 2}
    settings = {"NUM_STREAMS": 2, "ENABLE_CPU_PINNING": False}
    two = OvSession(bright_model, threads=3, workers=2)
    assert two._settings == settings | threads
    assert two._idle is not None and two._idle.qsize() == 2
    assert OvSession(bright_model, workers=2)._settings == settings
    one = OvSession(bright_model, threads=1)
    assert one._idle is not None
    for part in one._idle.get():
        model = part.request.get_compiled_model()
        assert model.get_property("INFERENCE_NUM_THREADS") == 1
        assert model.get_property("ENABLE_CPU_PINNING") is False


def test_a_run_that_fails_gives_its_place_back(
    bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = OvSession(bright_model)

    def fail(*_: Any) -> None:
        raise RuntimeError("Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp:2:\nNo y.\n")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", fail)
        with pytest.raises(SessionError, match=r"OpenVINO failed on .*bright\.onnx: No y$"):
            session.run(feeds())
    assert session.run(feeds())["masks"].shape == (1, 1, 16, 24)


def test_a_closed_session_says_so(bright_model: Path) -> None:
    session = OvSession(bright_model)
    session.close()
    session.close()
    with pytest.raises(SessionError, match=r"bright\.onnx is closed"):
        session.run(feeds())


def test_feeds_that_would_do_harm_are_refused(tmp_path: Path) -> None:
    session = OvSession(write_bright_model(tmp_path / "a.onnx"))
    good = feeds(n=2)
    wrong = [
        ({"images": good["images"]}, r"\['images'\], the model needs \['image_sizes', 'images'\]"),
        (good | {"images": good["images"].astype(np.float32)}, "is float32 .* needs uint8"),
        (good | {"image_sizes": good["image_sizes"][:1]}, r"int32 \[1, 2\].* N = 2"),
        (good | {"images": good["images"][:, :33]}, r"\[2, 33, 96, 3\].* multiples of 32"),
        (good | {"images": good["images"][:, :, :50]}, r"\[2, 64, 50, 3\].* multiples of 32"),
        (good | {"images": good["images"][:, :0]}, "none may be 0"),
        ({name: array[:0] for name, array in good.items()}, "none may be 0"),
    ]
    for feed, words in wrong:
        with pytest.raises(SessionError, match=words):
            session.run(feed)
        with pytest.raises(SessionError, match=words):
            session.profile(feed, 1)
    assert session.run(good)["masks"].shape == (2, 1, 16, 24)


def test_what_is_no_model_is_refused(bright_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ModelFileError, match="not a file"):
        OvSession(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        OvSession(path)
    for content in (b"hello, I am a text", bright_model.read_bytes()[:800]):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"a\.onnx is not an ONNX file") as caught:
            OvSession(path)
        assert "\n" not in str(caught.value)


def test_files_that_are_not_ours_are_refused(bright_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ModelFileError, match="not written by condinst-infer"):
        OvSession(changed(bright_model, path, "", None))
    text = OrtSession(bright_model).metadata.to_props()["condinst"].replace("person", "parson")
    with pytest.raises(ModelFileError, match="changed after export"):
        OvSession(changed(bright_model, path, "condinst", text))
    with pytest.raises(ModelFileError, match="output 'candidate_boxes' of .* is missing"):
        OvSession(write_bright_model(path, graph="detector"))
    with pytest.raises(ModelFileError, match=r"is float32 \[N, 1, 4\].*\[N, 7, 4\]"):
        OvSession(write_bright_model(path, config=bright_config(max_detections=7)))


def test_what_openvino_can_not_read_is_one_sentence(bright_model: Path, tmp_path: Path) -> None:
    model = onnx.load(bright_model)
    model.graph.node[1].op_type = "Divine"
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="OpenVINO can load: .*Divine") as caught:
        OvSession(tmp_path / "a.onnx")
    assert "\n" not in str(caught.value) and "Exception from" not in str(caught.value)


def test_a_precision_that_can_not_be_had_is_refused(
    bright_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = write_bright_model(tmp_path / "half.onnx", half=True, precision="fp16")
    deform = preset("condinst_r101_dcn_bifpn_sem", max_detections=1)
    deformable = write_bright_model(tmp_path / "deformable.onnx", config=deform)
    int8 = write_bright_model(tmp_path / "int8.onnx", precision="int8")
    for path, precision, words in (
        (deformable, "bf16", "has deformable convolutions. .* run it in fp32"),
        (bright_model, "int8", "bright.onnx, an fp32 file, in int8.* --precision int8"),
        (int8, "bf16", "an int8 file, in bf16.* --precision fp32"),
        (int8, "fp32", "an int8 file, in fp32.* --precision fp32"),
        (half, None, "an fp16 file, in fp16.* --precision fp32"),
    ):
        with pytest.raises(SessionError, match=words):
            OvSession(path, precision=precision)
    with pytest.raises(ConfigError, match="precision is 'bf8'; it must be one of fp32, bf16, int8"):
        OvSession(bright_model, precision="bf8")

    monkeypatch.setattr("condinst_infer.runtimes.openvino.cpu_precisions", lambda: ["fp32", "int8"])
    with pytest.raises(SessionError, match=r"this CPU can't compute in bf16; .* fp32"):
        OvSession(bright_model, precision="bf16")
    for path in (bright_model, deformable):
        assert OvSession(path).metadata.precision == "fp32"


def test_a_signal_reaches_python_after_sessions_have_come_and_gone(bright_model: Path) -> None:
    # two Cores that end in the order they came would leave the thread without a signal stack
    script = (
        "import os, signal, sys\n"
        "from condinst_infer.runtimes.openvino import OvSession\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "first, second = OvSession(sys.argv[1]), OvSession(sys.argv[1])\n"
        "first.close(); del first\n"
        "second.close(); del second\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, str(bright_model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_options_out_of_range_are_refused(bright_model: Path) -> None:
    with pytest.raises(ConfigError, match="threads is 0"):
        OvSession(bright_model, threads=0)
    with pytest.raises(ConfigError, match="workers is 0"):
        OvSession(bright_model, workers=0)


@pytest.mark.parametrize("package", ["openvino", "onnx"])
def test_without_a_package_the_extra_is_named(
    package: str, bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'condinst-infer\[openvino\]'"):
        OvSession(bright_model)


def test_load_takes_it_by_name(nano_onnx: Path, demo_folder: Path) -> None:
    photo = demo_folder / "nuclei.jpg"
    with load(nano_onnx) as usual, load(nano_onnx, runtime="openvino", threads=1) as pipeline:
        ours, theirs = pipeline(photo), usual(photo)
        assert isinstance(pipeline._runner.session, OvSession)  # type: ignore[union-attr]
    assert len(ours) == len(theirs) > 3
    assert np.abs(ours.boxes - theirs.boxes).max() < 1e-2  # measured 7e-4
    assert (ours.masks == theirs.masks).mean() > 0.9999  # measured 1


@pytest.mark.skipif(not BF16, reason="this CPU can't compute in bf16")
def test_load_hands_on_precision_threads_and_workers(nano_onnx: Path) -> None:
    options: dict[str, Any] = {"precision": "bf16", "threads": 2, "workers": 3}
    with load(nano_onnx, runtime="openvino", **options) as pipeline:
        assert pipeline.metadata.precision == "bf16"
        settings = pipeline._runner.session._settings  # type: ignore[union-attr]
    assert (settings["NUM_STREAMS"], settings["INFERENCE_NUM_THREADS"]) == (3, 6)


def test_what_does_not_go_together_is_refused(nano_onnx: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"runtime": "openvino", "device": "cuda"}, SessionError, "on the CPU here, not on 'cuda'"),
        ({"runtime": "tensorflow"}, ConfigError, "must be one of onnxruntime, openvino"),
        ({"precision": "bf16"}, ConfigError, "only with runtime 'openvino'"),
        ({"precision": "fp32", "runtime": "onnxruntime"}, ConfigError, "only with runtime"),
    ]
    for options, error, words in cases:
        with pytest.raises(error, match=words):
            load(nano_onnx, **options)
    for name in ("a.engine", "a.safetensors"):
        with pytest.raises(ConfigError, match=f"for an .onnx file, not for {name}"):
            load(name, runtime="openvino")


def test_the_verbs_hand_it_on(
    condinst: Run, nano_onnx: Path, demo_folder: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.json"
    image = {"id": 1, "file_name": "nuclei.jpg", "height": 520, "width": 696}
    names = zip(COCO_CATEGORY_IDS, COCO_CLASS_NAMES, strict=True)
    categories = [{"id": id_, "name": name} for id_, name in names]
    truth.write_text(json.dumps({"images": [image], "categories": categories, "annotations": []}))
    for words in (
        ("predict", nano_onnx, demo_folder / "nuclei.jpg", "-o", tmp_path / "out"),
        ("eval", nano_onnx, "--images", demo_folder, "--annotations", truth),
    ):
        words += ("--runtime", "openvino", "--precision", "int8")
        assert_refused(condinst(*words), "an fp32 file, in int8")
        status, out, err = condinst(*words[:-1], "fp32")
        assert status == 0 and "1 images" in out, err


FIRST_CALLS = """
import sys, threading
from condinst_infer.runtimes.openvino import core

core()
import openvino
together = threading.Barrier(8)
sys.setswitchinterval(1e-6)  # the threads take turns as often as they can

def convert():
    together.wait()
    openvino.Type.f32.to_dtype()  # what each run calls for each input

threads = [threading.Thread(target=convert, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_first_calls_of_several_workers_end() -> None:
    for _ in range(4):  # without the call in `core`, five of six hang
        subprocess.run([sys.executable, "-c", FIRST_CALLS], check=True, timeout=60)
