"""NVIDIA's own parser and builder take every exported graph, without a GPU.

TensorRT-RTX parses with the code of TensorRT 11. It knows no plugin, so it takes the function
bodies: what parses and builds is the whole graph in standard operations.
"""

import itertools
from pathlib import Path

import pytest

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer import checkpoint
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset, preset_names
from condinst_infer.config.validation import CHOICES
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import build_condinst
from condinst_infer.trt import build

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

COMBINATIONS = list(itertools.product(preset_names(), ("full", "detector"), ("fp32", "fp16")))


def assert_builds(path: Path, precision: str) -> None:
    built = build.engine_from_onnx(
        path,
        runtime="tensorrt_rtx",
        min_shape=(1, 64, 64),
        opt_shape=(1, 96, 128),
        max_shape=(2, 256, 256),
    )
    assert len(built.engine) > 1_000_000 and built.sidecar.precision_built == precision


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("file", ["detector_onnx", "mask_nms_onnx"])
def test_a_dynamic_file_builds(file: str, request: pytest.FixtureRequest) -> None:
    assert_builds(request.getfixturevalue(file), "fp32")


@pytest.mark.long
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("name", "graph", "precision"), COMBINATIONS)
def test_a_preset_of_real_size_builds(
    name: str, graph: str, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    model = with_trained_statistics(build_condinst(preset(name)))
    export_onnx(model, path, graph=graph, precision=precision)
    assert_builds(path, precision)
    path.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("kind", [kind for kind in CHOICES["mask_nms"] if kind != "greedy"])
def test_other_mask_nms_builds(kind: str, mask_nms_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = checkpoint.load(mask_nms_checkpoint)
    model.config = override(model.config, mask_nms=kind)
    export_onnx(model, path)
    assert_builds(path, "fp32")
