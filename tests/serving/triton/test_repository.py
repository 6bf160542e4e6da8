"""`condinst export --triton`: what is written, of which files, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

import condinst_infer as ci
from condinst_infer.trt import sidecar
from engines.emulator import Emulator
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused
from tests.support.fake_session import photograph
from tests.support.fake_tensorrt.device import built, install
from tests.support.triton_server import Server, assert_equal, full_shape, outputs, schema, served


def config_of(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.fixture
def engine(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Path]:
    """Makes an engine with the stand-in for TensorRT."""
    install(monkeypatch)
    return lambda source, **options: built(source, tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "batch"), [("nano_onnx", 3), ("nano_static_onnx", 0), ("panoptic_onnx", 3)]
)
def test_an_engine(
    name: str,
    batch: int,
    request: pytest.FixtureRequest,
    engine: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source: Path = request.getfixturevalue(name)
    path = engine(source, **({"max_shape": (3, 192, 192)} if batch else {}))
    served(path, tmp_path / "models")
    folder = tmp_path / "models" / "model_network"
    assert (folder / "1" / "model.plan").read_bytes() == path.read_bytes()
    config = config_of(folder)
    assert (config.backend, config.max_batch_size) == ("tensorrt", batch)
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert config.HasField("dynamic_batching") == bool(batch)
    # what NVIDIA's parser makes of the same file; the backend wants exactly that of outputs
    parsed = parsed_shapes(source)
    for tensor in (*config.input, *config.output):
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        assert full_shape(config, dims) == parsed[tensor.name]
    assert len(parsed) == len(config.input) + len(config.output)


def parsed_shapes(path: Path) -> dict[str, list[int]]:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(path.read_bytes())
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {tensor.name: list(tensor.shape) for tensor in tensors}


def test_engines_that_triton_does_not_run(
    nano_onnx: Path, engine: Callable[..., Path], condinst: Run, tmp_path: Path
) -> None:
    path = engine(nano_onnx, max_shape=(1, 192, 192))
    read, _ = sidecar.read(path)
    served(path, tmp_path / "one")
    config = config_of(tmp_path / "one" / "model_network")
    assert config.max_batch_size == 1 and not config.HasField("dynamic_batching")
    detector = replace(read.metadata(path), graph="detector").to_props()
    command = ("export", path, "--triton", tmp_path / "models")
    for other, *words in (
        (replace(read, runtime="tensorrt_rtx"), "engine of tensorrt_rtx", "--runtime tensorrt"),
        (replace(read, props=detector), "stops before NMS"),
    ):
        sidecar.sidecar_path(path).write_text(other.to_json())
        assert_refused(condinst(*command), *words)
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_the_command_writes_a_checkpoint(
    condinst: Run, nano_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "models"
    options = ("--size", "128x160", "--batch", "1", "--max-detections", "7")
    status, out, err = condinst("export", nano_checkpoint, "--triton", folder, *options)
    assert status == 0 and out.endswith("nano_network is its network\n")
    assert err.splitlines()[-1].startswith("self-test ... ")
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "nano/1/metadata.json", "nano/1/model.py", "nano/config.pbtxt",
        "nano_network/1/model.onnx", "nano_network/config.pbtxt",
    ]  # fmt: skip
    image, model = photograph((70, 111)), folder / "nano_network" / "1" / "model.onnx"
    assert_equal(outputs(Server(folder).infer("nano", pixels=image)), ci.load(model)(image))


def test_what_the_command_refuses(condinst: Run, bright_model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "other").mkdir(parents=True)
    (tmp_path / "damaged.onnx").write_bytes(b"onnx")
    new = ("--triton", tmp_path / "models")
    for command, *words in (
        ((bright_model, "--triton", taken), "is there already", "new folder"),
        ((bright_model, "--triton", bright_model), "is a file; give the name of a folder"),
        ((bright_model, *new, "--size", "96x160"), "--size", "exported already"),
        ((bright_model, *new, "--precision", "fp16"), "--precision", "exported already"),
        ((bright_model, *new, "--score-threshold", "0.5"), "--score-threshold"),
        ((bright_model, *new, "--graph", "detector"), "--graph full"),
        ((bright_model, *new, "-o", "a.onnx"), "not allowed with"),
        ((tmp_path / "damaged.onnx", *new), "damaged.onnx"),
        ((tmp_path / "no.engine", *new), "does not exist"),
        ((tmp_path / "no.pt", *new), "no model file"),
        ((bright_model,), "-o/--output --triton"),
    ):
        assert_refused(condinst("export", *command), *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.onnx", "taken"]
    assert [p.name for p in taken.iterdir()] == ["other"]


def test_a_file_name_makes_a_name_of_a_model(condinst: Run, tmp_path: Path) -> None:
    model = write_bright_model(tmp_path / "my cells.v2.onnx")
    assert condinst("export", model, "--triton", tmp_path / "models")[0] == 0
    assert set(Server(tmp_path / "models").models) == {"my_cells_v2", "my_cells_v2_network"}
