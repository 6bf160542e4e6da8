"""`condinst build`: with TensorRT-RTX for real, with TensorRT's stand-in where a GPU is needed."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from shutil import copy
from types import ModuleType

import numpy as np
import onnx
import pytest

from condinst_infer import checkpoint
from condinst_infer.cli.main import main
from condinst_infer.config.model import override
from condinst_infer.contract.metadata import file_sha256, metadata_from_props
from condinst_infer.errors import SessionError
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.tensorrt import TrtSession
from condinst_infer.trt import build
from condinst_infer.trt.inspection import BuiltGraph, read_engine
from condinst_infer.trt.sidecar import read, sidecar_path
from condinst_infer.verification import self_test
from condinst_infer.verification.intermediates import TorchIntermediates
from engines.emulator import Emulator
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused
from tests.support.fake_tensorrt.device import install
from tests.support.fake_tensorrt.types import state


def no_gpu(index: int = 0) -> None:
    """As `Device` where there is no driver; the emulator of other tests would be one."""
    raise SessionError("there is no NVIDIA driver here (libcuda.so.1: no such file). Run on ...")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "Device", no_gpu)


@pytest.fixture(scope="module")
def rtx(nano_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model, built by the command line without a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = tmp_path_factory.mktemp("rtx") / "new" / "model.engine"
    command = ["build", str(nano_onnx), "-o", str(path), "--runtime", "tensorrt_rtx", "--json"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(build, "Device", no_gpu)
        assert main([*command, "--workspace", "512", "--timing-cache", "none"]) == 0
    data = json.loads(said.getvalue())
    assert data["engine_bytes"] == path.stat().st_size
    assert data["notes"] == [
        "tensorrt_rtx measures nothing while it builds: --timing-cache has no effect"
    ]
    return path


def test_tensorrt_rtx_builds_without_a_gpu(rtx: Path, nano_onnx: Path) -> None:
    assert {path.name for path in rtx.parent.iterdir()} == {"model.engine", "model.engine.json"}
    sidecar, engine = read(rtx)
    assert len(engine) > 1_000_000 and sidecar.engine_sha256 == file_sha256(rtx)
    assert sidecar.onnx_sha256 == file_sha256(nano_onnx) and sidecar.gpu is None
    props = {p.key: p.value for p in onnx.load(nano_onnx).metadata_props}
    assert sidecar.props == props and sidecar.metadata(rtx).precision == "fp32"
    assert (sidecar.precision_built, sidecar.plugin, sidecar.inspected) == ("fp32", (), "network")
    assert sidecar.smoke_run == "not made: there is no NVIDIA driver here"
    assert str(sidecar.profile) == "1x64x64 to 1x192x192, fastest at 1x128x192"


def test_info_shows_the_sidecar(condinst: Run, rtx: Path) -> None:
    status, text, _ = condinst("info", rtx)
    assert status == 0
    for word in ("tensorrt_rtx 1.", "1x64x64 to 1x192x192", "no GPU", "fp32 (read from the parsed"):
        assert word in text
    assert json.loads(condinst("info", rtx, "--json")[1])["bytes"] == rtx.stat().st_size


def test_a_damaged_engine_is_refused_with_the_command_that_rebuilds_it(
    condinst: Run, rtx: Path, tmp_path: Path
) -> None:
    path, beside = tmp_path / "model.engine", tmp_path / "model.engine.json"

    def refused(engine: bytes, text: str, words: str) -> None:
        path.write_bytes(engine)
        beside.write_text(text)
        command = f"condinst build {tmp_path / 'dynamic.onnx'} -o {path} --runtime tensorrt_rtx\n"
        ran = condinst("info", path)
        assert_refused(ran, words)
        assert ran[2].endswith(command) or "changed after" in words

    engine, text = rtx.read_bytes(), sidecar_path(rtx).read_text()
    refused(engine[:-1], text, "truncated")
    refused(engine[:999] + bytes([engine[999] ^ 1]) + engine[1000:], text, "damaged")
    refused(engine, text.replace('"runtime_version": "1', '"runtime_version": "2'), "changed after")
    sidecar, _ = read(rtx)
    copy(rtx, path)
    copy(sidecar_path(rtx), beside)
    with pytest.raises(Exception, match=r"was built by tensorrt_rtx 1.* installed is 9\.0"):
        sidecar.check_runtime(path, "9.0")


def test_what_the_parser_cannot_take_is_named_with_its_node(
    condinst: Run, without_gpu: None, bright_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = onnx.load(bright_model)
    model.graph.node.append(onnx.helper.make_node("Strange", ["unit"], ["z"], name="mask/strange"))
    onnx.save(model, tmp_path / "a.onnx")
    ran = condinst("build", tmp_path / "a.onnx", "-o", tmp_path / "a.engine")
    assert_refused(ran, "node mask/strange (Strange)", "Plugin not found", "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_what_can_not_be_built_is_refused(
    condinst: Run, without_gpu: None, bright_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.engine"
    static = write_bright_model(tmp_path / "static.onnx", size=(64, 96), batch=1)
    (tmp_path / "text.onnx").write_text("hello, I am a text")
    for words, error in (
        ((bright_model, "-o", tmp_path / "a.trt"), "must end in .engine"),
        ((tmp_path / "none.onnx", "-o", out), "none.onnx does not exist"),
        ((tmp_path / "text.onnx", "-o", out), "text.onnx is not an ONNX file"),
        ((static, "-o", out, "--max", "1x64x96"), "the file is static"),
        ((bright_model, "-o", out, "--max", "1x65x96"), "multiples of 32"),
        ((bright_model, "-o", out, "--min", "64x96"), "'64x96' is not NxHxW"),
        ((bright_model, "-o", out, "--runtime", "tensorrt_rtx"), "without convolutions"),
        ((bright_model, "-o", static / "a.engine"), "is a file, not a folder"),
    ):
        assert_refused(condinst("build", *words), error)
    assert not out.exists()


def test_without_tensorrt_or_a_gpu_one_sentence_says_what_is_missing(
    condinst: Run,
    without_gpu: None,
    bright_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("build", bright_model, "-o", tmp_path / "a.engine")
    install(monkeypatch)
    ran = condinst(*command)
    assert_refused(ran, "and there is no NVIDIA driver here", "--runtime tensorrt_rtx builds with")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    extras = (
        "pip install 'condinst-infer[tensorrt]'",
        "pip install 'condinst-infer[tensorrt-rtx]'",
    )
    assert_refused(condinst(*command), "neither tensorrt nor tensorrt_rtx is installed", *extras)
    assert_refused(condinst(*command, "--runtime", "tensorrt"), extras[0])
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert_refused(condinst(*command), "tensorrt can't be loaded: libnvinfer.so.11: no such file.")


@pytest.fixture
def trt(cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """TensorRT's stand-in, on the emulator."""
    yield install(monkeypatch)
    assert cuda_emulator.failure() == ""


@pytest.fixture(scope="module")
def with_golden(
    nano_checkpoint: Path, nano_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The nano model with golden outputs inside."""
    path = Path(copy(nano_onnx, tmp_path_factory.mktemp("golden") / "model.onnx"))
    self_test.store(path, TorchIntermediates(checkpoint.load(nano_checkpoint)), OrtSession(path))
    return path


@pytest.mark.parametrize("version", ["10.9.0.34", "11.4.0.106"])
def test_tensorrt_builds_with_our_kernels_and_runs_the_golden_input(
    condinst: Run, trt: ModuleType, with_golden: Path, tmp_path: Path, version: str
) -> None:
    state.version = vars(trt)["__version__"] = version
    path = tmp_path / "model.engine"
    options = ("--workspace", "300", "--max", "2x192x192")
    status, text, err = condinst("build", with_golden, "-o", path, *options)
    assert (status, err) == (0, "") and "smoke run:      passed on 20 detections" in text
    assert "ClassNMS, DynamicMaskHead (read from the engine)" in text
    assert "7.5" in text and version in text
    scratch = 2 * 2 * 192 * 192 * 3 / 1e6  # the stand-in's, for the largest shapes
    assert f"up to {scratch:.1f} MB of scratch memory for each call at a time" in text
    sidecar, _ = read(path)
    assert sidecar.smoke_run == "passed on 20 detections" and sidecar.inspected == "engine"
    assert self_test.self_test_from_props(sidecar.props, path) is not None
    (config,), (network,) = state.configs, state.networks
    assert [flag.name for flag in config._cleared] == ["TF32"] and network.flags == 1 << 1
    assert list(config._limits.values()) == [300 << 20]
    sizes = ((1, 2), (1, 2), (2, 2))
    images = ((1, 64, 64, 3), (1, 128, 192, 3), (2, 192, 192, 3))
    assert config._profile._shapes == {"images": [*images], "image_sizes": [*sizes]}


def test_a_file_in_standard_operators_is_built_with_a_note(
    condinst: Run, trt: ModuleType, with_golden: Path, tmp_path: Path
) -> None:
    standard, path = tmp_path / "standard.onnx", tmp_path / "model.engine"
    assert condinst("export", with_golden, "-o", standard, "--standard-ops")[0] == 0
    status, text, _ = condinst("build", standard, "-o", path)
    assert status == 0 and text.startswith("note: the file is in standard operators")
    assert "ClassNMS" not in text and read(path)[0].plugin == ()
    assert "note:" not in condinst("build", standard, "-o", path, "--no-plugin")[1]


def test_an_engine_that_computes_something_else_is_not_written(
    condinst: Run,
    trt: ModuleType,
    with_golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = TrtSession.run

    def wrong(self: TrtSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value + value.dtype.type(1) for name, value in run(self, feeds).items()}

    monkeypatch.setattr(TrtSession, "run", wrong)
    status, _, err = condinst("build", with_golden, "-o", tmp_path / "model.engine")
    assert status == 1 and "not those PyTorch had at export" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_more_candidates_than_the_kernel_takes_are_refused_before_parsing(
    condinst: Run, trt: ModuleType, nano_onnx: Path, tmp_path: Path
) -> None:
    model = onnx.load(nano_onnx)
    metadata = metadata_from_props({p.key: p.value for p in model.metadata_props}, nano_onnx)
    command = ("build", tmp_path / "a.onnx", "-o", tmp_path / "a.engine")
    levels = len(metadata.config.strides)
    most = 5120 // levels
    for topk, graph, words in (
        (most + 1, "full", (f"{levels * (most + 1)} candidates", "takes 5120", "so: --no-plugin.")),
        (most + 1, "detector", (f"{most + 1} on each of {levels} levels", "lower pre_nms_topk.")),
        (most, "full", ()),
    ):
        config = override(metadata.config, pre_nms_topk=topk)
        del model.metadata_props[:]
        for key, value in replace(metadata, config=config, graph=graph).to_props().items():
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, tmp_path / "a.onnx")
        if words:
            assert_refused(condinst(*command), *words)
            assert state.networks == []
    assert condinst(*command)[0] == 0


def test_a_smoke_run_that_can_not_be_made_is_said(
    condinst: Run, trt: ModuleType, with_golden: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.engine"
    for source, options, words in (
        (nano_onnx, (), "not made: the file was exported without a self-test"),
        (
            with_golden,
            ("--max", "1x64x64"),
            "not made: the engine does not take the self-test's input of 1x128x192",
        ),
    ):
        assert f"smoke run:      {words}" in condinst("build", source, "-o", path, *options)[1]
        assert read(path)[0].smoke_run.startswith(words)


def test_an_engine_that_is_not_what_the_file_says_is_refused(
    condinst: Run,
    trt: ModuleType,
    nano_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("build", nano_onnx, "-o", tmp_path / "a.engine")
    state.half = True
    assert_refused(condinst(*command), "is fp32, but the network came out as fp16")
    state.half = False
    text = "tests.support.fake_tensorrt.runtime.EngineInspector.get_engine_information"
    for output, name, words in (
        ("Half", "ClassNMS DynamicMaskHead", "but the engine came out as fp16"),
        ("Float", "ClassNMS DynamicMaskHead/x", "in place of our kernels for DynamicMaskHead"),
    ):
        layers = [{"Name": name, "Outputs": [{"DataType": output}]}]
        monkeypatch.setattr(text, lambda *_, said=layers: json.dumps({"Layers": said}))
        assert_refused(condinst(*command), words)
    assert_refused(condinst(*command, "--no-plugin"), "earlier build of this process")
    monkeypatch.setattr("condinst_infer.trt.plugin.register", lambda: state.plugins.clear())
    words = "the network has standard operations in place of our kernels for ClassNMS and Dyn"
    assert_refused(condinst(*command), words, "--no-plugin")
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.fake_tensorrt.builder.Builder.__init__", lambda *_: int([]))  # type: ignore
        assert_refused(condinst(*command), "tensorrt can't start here: it gives no reason.")
        patch.undo()
        patch.setattr(
            "tests.support.fake_tensorrt.runtime.Runtime.deserialize_cuda_engine", lambda *_: None
        )
        assert_refused(condinst(*command, "--no-plugin"), "can't load the engine it just built")
    state.complaint = "Error Code 4:\n no implementation"
    assert_refused(condinst(*command, "--no-plugin"), "can't build", "Error Code 4: no implem")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_says_nothing_about_itself_is_what_was_parsed(
    condinst: Run,
    trt: ModuleType,
    with_golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = "tests.support.fake_tensorrt.runtime.EngineInspector.get_engine_information"
    nameless = json.dumps({"Layers": [{"Outputs": [{"DataType": "Float"}]}]})
    for text in (
        '{"Layers": ["a layer", {"Outputs": [{"Name": "x"}]}]}',
        "[inf",
        "[]",
        "{}",
        nameless,
    ):
        monkeypatch.setattr(function, lambda *_, text=text: text)
        status, out, _ = condinst("build", with_golden, "-o", tmp_path / "a.engine")
        assert status == 0 and "fp32 (read from the parsed file" in out and "passed on" in out
        assert "ClassNMS, DynamicMaskHead (read from the parsed file" in out
        half = BuiltGraph("fp16", (), "network")
        found, _ = read_engine(trt, read(tmp_path / "a.engine")[1], half)
        assert replace(found, scratch_bytes=None) == half or text == nameless


def test_the_timing_cache_is_read_and_written_and_a_foreign_one_starts_anew(
    condinst: Run, trt: ModuleType, nano_onnx: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    command = ("build", nano_onnx, "-o", tmp_path / "a.engine", "--timing-cache", cache)
    for content in (b"+", b"++"):
        assert "note:" not in condinst(*command)[1]
        assert cache.read_bytes() == content
    assert_refused(condinst(*command[:-1], tmp_path), "is a folder; give the name of a file")
    cache.write_bytes(b"foreign")
    assert "cache is of another GPU or version and starts anew" in condinst(*command)[1]
    assert cache.read_bytes() == b"+"
