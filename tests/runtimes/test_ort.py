"""The ONNX Runtime session: what it reads from a file, what it refuses, and in which words."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from condinst_infer.contract.tensors import TensorSpec, check_feeds
from condinst_infer.errors import ConfigError, MissingExtraError, ModelFileError, SessionError
from condinst_infer.runtimes.ort import OrtSession
from tests.support.bright_model import bright_config, changed, write_bright_model


def feeds(n: int = 1, h: int = 64, w: int = 96, level: int = 255) -> dict[str, np.ndarray]:
    return {
        "images": np.full((n, h, w, 3), level, dtype=np.uint8),
        "image_sizes": np.array([[h, w - 6]] * n, dtype=np.int32),
    }


def test_tensors_and_metadata_are_those_of_the_file(bright_model: Path) -> None:
    session = OrtSession(bright_model)
    assert session.inputs["images"] == TensorSpec(np.dtype(np.uint8), ("N", "H", "W", 3))
    assert session.outputs["boxes"] == TensorSpec(np.dtype(np.float32), ("N", 1, 4))
    assert session.metadata.config == bright_config()


def test_run_gives_all_outputs_by_name(bright_model: Path) -> None:
    outputs = OrtSession(bright_model).run(feeds(n=2))
    assert outputs["num_detections"].tolist() == [1, 1]
    np.testing.assert_allclose(outputs["boxes"], [[[0, 0, 90, 64]]] * 2, rtol=0, atol=1e-3)
    assert outputs["masks"].shape == (2, 1, 16, 24) and outputs["masks"].min() > 0.999


@pytest.mark.parametrize("chosen", [None, "0"])
def test_nothing_is_reported_unless_asked_for(
    bright_model: Path, tmp_path: Path, chosen: str | None
) -> None:
    code = f"""import os, condinst_infer
print(os.environ["ORT_DISABLE_TELEMETRY"])
condinst_infer.load({str(bright_model)!r}).close()"""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {name: os.environ[name] for name in os.environ if "TELEMETRY" not in name}
    if chosen is not None:
        environment["ORT_DISABLE_TELEMETRY"] = chosen
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | home, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{chosen or 1}\n", "")
    if chosen is None:
        assert not list(tmp_path.iterdir())  # where an identity of the machine would be kept


def test_runs_at_the_same_time_do_not_disturb_each_other(bright_model: Path) -> None:
    session = OrtSession(bright_model, threads=1)
    levels = [100 + i for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda level: session.run(feeds(level=level)), levels)
        scores = [float(outputs["scores"][0, 0]) for outputs in runs]
    assert scores == [pytest.approx(level / 255, abs=1e-5) for level in levels]  # 4e-3 apart


def test_a_closed_session_says_so(bright_model: Path) -> None:
    session = OrtSession(bright_model)
    session.close()
    session.close()
    with pytest.raises(SessionError, match=r"bright\.onnx is closed"):
        session.run(feeds())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "not a model ONNX Runtime can load"),
        (b"hello, I am a text", "not a model ONNX Runtime can load"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        OrtSession(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a file"):
        OrtSession(tmp_path)


def test_a_truncated_model_is_refused(bright_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(bright_model.read_bytes()[:800])
    with pytest.raises(ModelFileError, match="can load"):
        OrtSession(path)


def test_a_foreign_model_is_refused(bright_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not written by condinst-infer"):
        OrtSession(changed(bright_model, tmp_path / "a.onnx", "", None))


def test_tampered_metadata_is_refused(bright_model: Path, tmp_path: Path) -> None:
    text = OrtSession(bright_model).metadata.to_props()["condinst"].replace("person", "parson")
    with pytest.raises(ModelFileError, match="changed after export"):
        OrtSession(changed(bright_model, tmp_path / "a.onnx", "condinst", text))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"precision": "fp16"}, r"output 'masks' of .* is float32 .* the contract needs float16"),
        ({"graph": "detector"}, "output 'candidate_boxes' of .* is missing"),
        ({"graph": "something"}, "graph 'something'"),
        ({"config": bright_config(max_detections=7)}, r"is float32 \[N, 1, 4\].*\[N, 7, 4\]"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused(
    tmp_path: Path, claims: dict, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        OrtSession(write_bright_model(tmp_path / "a.onnx", **claims))


def test_an_output_that_is_not_in_the_contract_is_refused(
    bright_model: Path, tmp_path: Path
) -> None:
    model = onnx.load(bright_model)
    model.graph.output.append(onnx.helper.make_tensor_value_info("sizes", 1, ["N", 2]))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ModelFileError, match="outputs that are not in the contract: sizes"):
        OrtSession(tmp_path / "a.onnx")


def test_half_precision_masks_are_accepted_where_the_file_says_so(tmp_path: Path) -> None:
    path = write_bright_model(tmp_path / "a.onnx", half=True, precision="fp16")
    assert OrtSession(path).run(feeds())["masks"].dtype == np.float16


def test_wrong_feeds_are_shown_beside_the_needed_ones(tmp_path: Path) -> None:
    session = OrtSession(write_bright_model(tmp_path / "a.onnx", size=(64, 96)))
    good = feeds(n=2)
    wrong = [
        ({"images": good["images"]}, r"\['images'\], the model needs \['image_sizes', 'images'\]"),
        ({**good, "images": good["images"].astype(np.float32)}, "is float32 .* needs uint8"),
        ({**good, "images": good["images"][0]}, r"uint8 \[64, 96, 3\], .* \[N, 64, 96, 3\]"),
        ({**good, "images": good["images"][:, :32]}, r"\[2, 32, 96, 3\].*\[N, 64, 96, 3\]"),
        ({**good, "image_sizes": good["image_sizes"][:1]}, r"int32 \[1, 2\].* N = 2"),
    ]
    for feed, words in wrong:
        with pytest.raises(SessionError, match=words):
            session.run(feed)


def test_unnamed_dimensions_take_any_size() -> None:
    inputs = {name: TensorSpec(np.dtype(np.int32), ("?",)) for name in "ab"}
    check_feeds(inputs, {"a": np.zeros(2, np.int32), "b": np.zeros(3, np.int32)})


def test_a_failure_of_the_runtime_is_one_sentence(bright_model: Path) -> None:
    with pytest.raises(SessionError, match="ONNX Runtime failed on") as caught:
        OrtSession(bright_model).run(feeds(h=0))  # no maximum of nothing
    assert "\n" not in str(caught.value)


def test_cuda_without_its_provider_names_the_extra(bright_model: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(SessionError, match=r"pip install 'condinst-infer\[gpu\]'"):
        OrtSession(bright_model, device="cuda")


def test_options_out_of_range_are_refused(bright_model: Path) -> None:
    with pytest.raises(ConfigError, match="device is 'tpu'"):
        OrtSession(bright_model, device="tpu")
    for threads in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="threads is"):
            OrtSession(bright_model, threads=threads)  # type: ignore[arg-type]


def test_without_onnxruntime_the_extra_is_named(
    bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'condinst-infer\[cpu\]'"):
        OrtSession(bright_model)
