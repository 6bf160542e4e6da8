"""What needs an NVIDIA GPU; in other processes, because this one may have the emulator loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from condinst_infer.system.hardware import gpus

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="there is no NVIDIA GPU"),
]


def run(*words: str | Path) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kernels_are_right_on_the_gpu(tmp_path: Path) -> None:
    words = ("-m", "condinst_infer", "doctor", "--gpu-check", "-o", tmp_path / "gpu.json")
    assert "All right." in run(*words)


def test_pipelines_are_right_on_the_gpu(tmp_path: Path) -> None:
    words = ("-m", "benchmarks.gpu.pipelines", "pipelines", "--output", tmp_path / "gpu.json")
    assert "all right" in run(*words)


def test_a_pycuda_array_goes_in_and_masks_come_out(detector_onnx: Path, photos: Path) -> None:
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    assert "mean probability" in run(
        "-m", "engines.examples.pycuda_frame", detector_onnx, photos / "a.png"
    )
