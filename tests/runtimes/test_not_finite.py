"""Networks that compute NaN: an error in every runtime, also where they would find nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import condinst_infer as ci
from condinst_infer import checkpoint
from condinst_infer.contract.metadata import props_from_onnx
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.errors import ModelFileError, SessionError
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.runtimes.runner import CpuRunner
from condinst_infer.trt.build import engine_from_onnx
from tests.support.command_line import Run, assert_refused
from tests.support.damaged_bits import write_with_weight
from tests.support.recorded_session import Recorded, photograph


def _slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


# parts of the network, and what an error says of the outputs
PARTS = {
    "backbone.stem": "boxes or scores",
    "share_tower.0": "boxes or scores",
    "class_logits": "boxes or scores",
    "centreness": "boxes or scores",
    "controller": "masks",
    "mask_branch.output": "masks",
}
# the others are for the slow tests
SOME = [p if p in ("backbone.stem", "controller") else _slow(p) for p in PARTS]
IMAGE = photograph((60, 90))


def refusal(what: str) -> str:
    return f"the model put out ({what}|boxes or scores) that are not finite"


@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize(
    "file",
    [
        "nano_onnx",
        "detector_onnx",
        _slow("mask_nms_onnx"),
        _slow("mask_nms_detector_onnx"),
    ],
)
def test_onnx_runtime(part: str, file: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write_with_weight(request.getfixturevalue(file), path, part, np.nan)
    with ci.load(path) as pipeline, pytest.raises(SessionError, match=refusal(PARTS[part])):
        pipeline(IMAGE)


@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize("source", ["nano_checkpoint", "mask_nms_checkpoint"])
def test_pytorch(part: str, source: str, request: pytest.FixtureRequest) -> None:
    model = checkpoint.load(request.getfixturevalue(source))
    weights = {n: p for n, p in model.named_parameters() if part in n}
    name = next((n for n in weights if n.endswith("bias")), next(iter(weights)))
    weights[name].data.view(-1)[0] = torch.nan
    with (
        ci.Pipeline(CpuRunner(TorchSession(model))) as pipeline,
        pytest.raises(SessionError, match=refusal(PARTS[part])),
    ):
        pipeline(IMAGE)


@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize(
    "file",
    [
        _slow("nano_onnx"),
        "detector_onnx",
        _slow("mask_nms_detector_onnx"),
    ],
)
def test_our_kernels(
    part: str, file: str, device: Device, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    write_with_weight(request.getfixturevalue(file), path, part, np.nan)
    runner = CudaRunner(Recorded(path), device)
    with (
        ci.Pipeline(runner) as pipeline,
        pytest.raises(SessionError, match=refusal(PARTS[part])),
    ):
        pipeline(IMAGE)


READERS: dict[str, Callable[[Path], object]] = {
    # its ReLU makes 0 of NaN, so that the outputs don't show it
    "OpenVINO": lambda path: ci.load(path, runtime="openvino"),
    "the cut for a GPU": detector_from_full,
    "TensorRT's builder": engine_from_onnx,
}


@pytest.mark.parametrize("part", SOME)
@pytest.mark.parametrize("reader", READERS)
def test_a_runtime_that_computes_past_nan_does_not_get_the_weights(
    reader: str, part: str, nano_onnx: Path, tmp_path: Path
) -> None:
    if reader == "OpenVINO":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    path = tmp_path / "a.onnx"
    name = write_with_weight(nano_onnx, path, part, np.nan)
    with pytest.raises(ModelFileError, match=f"the weight .*{part.split('.')[0]}.* holds NaN") as e:
        READERS[reader](path)
    assert name in str(e.value) and str(path) in str(e.value)


def test_info_verifies_an_exported_file(nano_onnx: Path, tmp_path: Path, condinst: Run) -> None:
    status, out, _ = condinst("info", nano_onnx, "--verify")
    assert (status, out.count("\n")) == (0, 1) and out.startswith(f"match: {nano_onnx} is as it")
    digest = props_from_onnx(nano_onnx.read_bytes(), nano_onnx)["condinst_weights_sha256"]
    assert f"weights_sha256:     {digest}\n" in condinst("info", nano_onnx)[1]

    path = tmp_path / "a.onnx"
    write_with_weight(nano_onnx, path, "controller", 0.25)
    status, out, _ = condinst("info", path, "--verify")
    assert (status, out.count("\n")) == (1, 1) and out.startswith(f"changed: {path} was changed")
    with ci.load(path) as pipeline:  # a tool may have rewritten it
        pipeline(IMAGE)
    name = write_with_weight(nano_onnx, path, "controller", np.inf)
    assert_refused(condinst("info", path, "--verify"), str(path), f"{name} holds infinity")

    status, out, _ = condinst("info", "nuclei", "--verify")
    assert status == 0 and out.startswith("no checksum: ") and out.count("\n") == 1


def test_verify_and_contract_exclude_each_other(nano_onnx: Path, condinst: Run) -> None:
    assert_refused(condinst("info", nano_onnx, "--verify", "--contract"), "exclude each other")
