"""NVIDIA's own parser and builder take every exported graph, without a GPU.

TensorRT-RTX parses with the code of TensorRT 11. It knows no plugin here, so it takes the function
bodies: what parses and builds is the whole graph in standard operations.
"""

from pathlib import Path

import pytest

from condinst_infer.export import export_onnx
from condinst_infer.model import CondInst
from condinst_infer.presets import names, preset

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

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


class Silent(trt.ILogger):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """Keeps the errors for the assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: object, message: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(message)


def engine_bytes(path: Path) -> int:
    """Size of the engine built from `path` for 64x64 to 256x256; asserts on the way."""
    logger = Silent()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(path.read_bytes())
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    assert parsed, [f"{e.node_name()}: {e.desc()}" for e in found]
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 64, 64, 3), (1, 96, 128, 3), (2, 256, 256, 3))
    profile.set_shape("image_sizes", (1, 2), (1, 2), (2, 2))
    settings = builder.create_builder_config()
    settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    assert engine is not None, logger.errors
    return engine.nbytes


@pytest.mark.parametrize(("name", "graph", "precision"), COMBINATIONS)
def test_parses_and_builds(name: str, graph: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(CondInst(preset(name)), path, graph=graph, precision=precision)
    size = engine_bytes(path)
    path.unlink()
    assert size > 1_000_000
