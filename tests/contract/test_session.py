"""Output shapes follow from the metadata alone: what an engine's memory is allocated by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer.config.presets import preset
from condinst_infer.contract.tensors import output_shapes
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import build_condinst
from condinst_infer.runtimes.ort import OrtSession


@pytest.fixture
def five_levels(tmp_path: Path) -> Path:
    """A detector whose strides, 8 to 128, don't divide every canvas."""
    torch.manual_seed(0)
    config = preset(
        "condinst_nano",
        neck_extra_levels=2,
        head_levels=(3, 4, 5, 6, 7),
        sizes_of_interest=(64, 128, 256, 512, 1024),
        pre_nms_topk=70,
        mask_channels=5,
    )
    model = with_trained_statistics(build_condinst(config))
    export_onnx(model, tmp_path / "model.onnx", graph="detector")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("file", [pytest.param("five_levels", marks=pytest.mark.slow), "nano_onnx"])
def test_output_shapes_are_those_a_runtime_returns(
    file: str, request: pytest.FixtureRequest
) -> None:
    session = OrtSession(request.getfixturevalue(file), threads=1)
    for n, canvas in ((1, (32, 32)), (2, (96, 160)), (1, (224, 32)), (3, (64, 416))):
        feeds = {
            "images": np.zeros((n, *canvas, 3), np.uint8),
            "image_sizes": np.array([canvas] * n, np.int32),
        }
        found = {name: value.shape for name, value in session.run(feeds).items()}
        assert output_shapes(session.metadata, n, canvas) == found
