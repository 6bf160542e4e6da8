"""`python -m benchmarks.gpu.pipelines` runs to its end without a GPU, as it must on one."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import pipelines
from condinst_infer.profiling.gpu import run
from condinst_infer.profiling.gpu.checks import Check
from engines.emulator import Emulator


@pytest.fixture
def benchmark(cuda_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The JSON file it will write; it believes that there is no GPU."""
    cuda_emulator.schedule("shuffled")
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(output)])
    return output


def test_it_checks_every_kernel_and_times_every_stage(
    benchmark: Path, cuda_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipelines.main() == 0
    result = json.loads(benchmark.read_text())
    kernels = {check["kernel"] for check in result["checks"]}
    expected = {"class_nms", "select", "dynamic_mask_head", "preprocess", "paste", "panoptic"}
    expected.add("mask_nms")
    assert kernels == expected
    assert all(check["ok"] for check in result["checks"]) and len(result["checks"]) > 20
    assert len(result["results"]) == 6
    assert all(row["times_ms"]["ours"]["p50"] > 0 for row in result["results"])
    assert "instances" in result["results"][-1]["what"]
    assert " 0 instances" not in result["results"][-1]["what"]
    assert "no GPU" in result["device"] and "mean nothing" in capsys.readouterr().err
    assert cuda_emulator.failure() == ""


def test_a_failed_check_is_told_and_nothing_is_lost(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Check("paste", "made up", float("nan"), 0)
    monkeypatch.setattr(run, "checks", lambda *_, **__: [wrong])
    monkeypatch.setattr(run, "kernel_times", lambda *_, **__: [])
    monkeypatch.setattr(pipelines, "pipeline_times", lambda *_, **__: [])
    assert pipelines.main() == 1
    assert "FAILED" in capsys.readouterr().out
    assert [check["ok"] for check in json.loads(benchmark.read_text())["checks"]] == [False]
