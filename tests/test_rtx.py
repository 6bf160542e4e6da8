"""NVIDIA's own parser and builder take every exported graph, without a GPU.

TensorRT-RTX parses with the code of TensorRT 11. It knows no plugin, so it takes the function
bodies: what parses and builds is the whole graph in standard operations.
"""

from pathlib import Path

import pytest

from condinst_infer.config import CondInstConfig
from condinst_infer.config_rules import CHOICES
from condinst_infer.engines import build
from condinst_infer.errors import SessionError
from condinst_infer.export import export_onnx
from condinst_infer.model import CondInst
from condinst_infer.presets import names, preset

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

USUAL = ("condinst_nano", "condinst_rt_r50_shtw")
COMBINATIONS = [
    pytest.param(
        name,
        graph,
        precision,
        marks=[] if name in USUAL else [pytest.mark.slow],
    )
    for name in names()
    for graph in ("full", "detector")
    for precision in ("fp32", "fp16")
]


@pytest.mark.parametrize(("name", "graph", "precision"), COMBINATIONS)
def test_parses_and_builds(
    name: str, graph: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_builds(preset(name), graph, precision, tmp_path / "model.onnx", monkeypatch)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind == "greedy" else [pytest.mark.slow])
        for kind in CHOICES["mask_nms"]
    ],
)
def test_mask_nms_parses_and_builds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preset("condinst_nano", nms="mask", mask_nms=kind)
    assert_builds(config, "full", "fp32", tmp_path / "model.onnx", monkeypatch)


def assert_builds(
    config: CondInstConfig,
    graph: str,
    precision: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_gpu() -> None:  # the CUDA shim of other tests would be one
        raise SessionError("there is no GPU.")

    monkeypatch.setattr(build, "Device", no_gpu)
    export_onnx(CondInst(config), path, graph=graph, precision=precision)
    built = build.engine_from_onnx(
        path, runtime="tensorrt_rtx", least=(1, 64, 64), usual=(1, 96, 128), most=(2, 256, 256)
    )
    path.unlink()
    assert len(built.engine) > 1_000_000 and built.sidecar.precision_built == precision
