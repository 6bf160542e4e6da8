"""The tables of results on a GPU, from a made-up file as quarter_hour.sh merges it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.pipelines import merge
from benchmarks.report.operations import gpu_tables
from condinst_infer.system.timing import summary

CARD = {"name": "NVIDIA Made-up 1", "compute_capability": [9, 0], "driver_cuda": "12.4"}


def result(**changes: Any) -> dict[str, Any]:
    packages = {"torch": "2.9.9", "numpy": "2.0.0"}
    return {
        "complete": True,
        "small": False,
        "device": CARD,
        "environment": {"packages": packages},
        "groups": {},
        "checks": [],
        "results": [],
        "errors": [],
    } | changes


def row(**changes: Any) -> dict[str, Any]:
    roofline = {"bound": "memory", "least_us": 5.0, "share": 0.251}
    times = {"ours": summary([0.020, 0.020, 0.031]), "torch": summary([1.25]), "it": summary([2])}
    return {
        "what": "a kernel",
        "instances": 100,
        "times_ms": times,
        "gb_per_s": 1234.5,
        "roofline": roofline,
    } | changes


def table_of(folder: Path, **changes: Any) -> str:
    (folder / "gpu").mkdir()
    (folder / "gpu" / "card.json").write_text(json.dumps(result(**changes)))
    return gpu_tables(folder)


def test_a_row_has_percentiles_what_stands_beside_it_and_its_share_of_the_roofline(
    tmp_path: Path,
) -> None:
    checks = [{"kernel": "paste", "ok": True}, {"kernel": "paste", "ok": False}]
    text = table_of(tmp_path, checks=checks, results=[row()])
    assert "NVIDIA Made-up 1, driver for CUDA 12.4, torch 2.9.9: 2 checks, 1 failed." in text
    assert "| a kernel | 20 | 31 | torch 1,250; it 2,000 | 1234 | 25 %, memory |" in text


def test_what_is_not_known_or_failed_is_said(tmp_path: Path) -> None:
    pipeline = {
        "what": "whole",
        "times_ms": {"ours": summary([4.5, 4.5, 5]), "alone": summary([4.0])},
    }
    rows = [
        row(roofline=None, failed={"torchvision": "no CUDA"}),
        {"what": "a lost one", "instances": 1, "error": "SessionError: a | b\nc"},
        pipeline,
    ]
    lines = table_of(tmp_path, results=rows).splitlines()
    assert "| 1234 | unknown |" in lines[-3] and "; torchvision failed |" in lines[-3]
    assert lines[-2] == "| a lost one | failed |  | SessionError: a / b c |  |  |"
    assert lines[-1] == "| whole | 4,500 | 5,000 | alone 4,000 |  |  |"


def test_there_may_be_no_result(tmp_path: Path) -> None:
    assert gpu_tables(tmp_path) == "Times on a GPU: none yet."


def test_the_parts_of_one_card_become_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [result(checks=[{"ok": True}], groups={"a": 1}), result(results=[row()])]
    paths = [tmp_path / name for name in ("checks.json", "times.json", "pipelines.json")]
    for path, part in zip(paths, parts, strict=False):
        path.write_text(json.dumps(part))
    assert merge(paths[:2], tmp_path) == 0
    whole = json.loads((tmp_path / "nvidia-made-up-1.json").read_text())
    assert whole["complete"] and len(whole["checks"]) == len(whole["results"]) == 1
    assert whole["groups"] == {"a": 1}
    assert merge(paths, tmp_path) == 1  # the pipelines were not measured
    assert not json.loads((tmp_path / "nvidia-made-up-1.json").read_text())["complete"]
    assert "nvidia-made-up-1.json" in capsys.readouterr().out


def test_nothing_is_merged_where_no_part_reached_a_gpu(tmp_path: Path) -> None:
    part = tmp_path / "checks.json"
    part.write_text(json.dumps(result(device=None)))
    assert merge([part, tmp_path / "times.json"], tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checks.json"]
