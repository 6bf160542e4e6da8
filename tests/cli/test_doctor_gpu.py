"""`condinst doctor --gpu-check` on the emulated driver, with and without PyTorch."""

import json
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.profiling.gpu import run
from condinst_infer.profiling.gpu.groups import CHECKS, TIMES, cases_of, groups_of
from tests.support.command_line import Run
from tests.support.emulated_driver import driver_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made_up(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the command run groups of tests/support/gpu_groups.py."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_folder(tmp_path_factory, "class_nms")))
    monkeypatch.chdir(ROOT)  # where `tests` is

    def use(*names: str) -> None:
        groups = {name: f"tests.support.gpu_groups:{name}" for name in names}
        monkeypatch.setattr(run, "groups_of", lambda _: groups)

    return use


@pytest.fixture
def driver(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find the emulated driver with all kernels."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver_folder(tmp_path_factory)))
    monkeypatch.chdir(ROOT)  # where `engines` is


@pytest.mark.parametrize("words", [["--small"], ["--only", "paste"], ["-o", "x.json"]])
def test_options_of_the_gpu_check_need_it(condinst: Run, words: list[str]) -> None:
    status, _, error = condinst("doctor", *words)
    assert status == 2 and error == f"condinst: {words[0]} goes with --gpu-check.\n"


def test_an_unknown_kernel_is_told_the_known_ones(condinst: Run, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    status, _, error = condinst("doctor", "--gpu-check", "--only", "class_nsm", "-o", output)
    assert status == 2 and not output.exists()
    assert "'class_nsm'; did you mean class_nms? --only takes one of: class_nms, select" in error


def test_a_kernel_is_checked_and_timed() -> None:
    assert list(groups_of("select")) == ["select", "select times"]
    assert list(groups_of("mask_bits")) == ["mask_bits"]
    assert groups_of() == CHECKS | TIMES


def test_it_says_what_passed_and_where_the_report_is(
    condinst: Run, made_up: Any, tmp_path: Path
) -> None:
    made_up("right")
    output = tmp_path / "gpu.json"
    status, out, error = condinst("doctor", "--gpu-check", "--small", "--json", "-o", output)
    lines = error.splitlines()
    assert status == 0 and json.loads(out) == json.loads(output.read_text())
    assert lines[0] == "no GPU: kernels run on the CPU, compute capability 7.5, CUDA 12.2"
    assert lines[-1] == f"All right. The report is in {output}."
    made_up("wrong")
    status, out, error = condinst("doctor", "--gpu-check", "--small")
    assert status == 1 and error == "" and "1 of 3 checks passed" in out
    assert out.endswith(
        "3 failed. Run it again with -o gpu-check.json and attach that to an issue.\n"
    )


@pytest.mark.slow
def test_all_is_right_on_the_emulated_driver(condinst: Run, driver: None, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    status, out, error = condinst("doctor", "--gpu-check", "--small", "-o", output)
    assert (status, error) == (0, "") and "All right." in out
    data = json.loads(output.read_text())
    assert data["complete"] and data["errors"] == [] and list(data["groups"]) == [*CHECKS, *TIMES]
    found = {(check["kernel"], check["against"]) for check in data["checks"]}
    assert {kernel for kernel, against in found if against == "stored"} == set(CHECKS)
    assert {kernel for kernel, against in found if against != "stored"} == set(CHECKS)
    assert len(data["results"]) >= len(TIMES)
    assert all(row["times_ms"]["ours"]["p50"] > 0 for row in data["results"])


@pytest.mark.slow
def test_all_is_right_without_torch(
    condinst: Run, driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    status, out, _ = condinst("doctor", "--gpu-check", "--small", "--json")
    data = json.loads(out)
    assert status == 0, data["errors"]
    assert data["complete"] and {check["against"] for check in data["checks"]} == {
        "stored",
        "numpy",
    }
    assert {check["kernel"] for check in data["checks"]} == set(CHECKS)
    assert len(data["results"]) >= len(TIMES)


SELECT = "cuLaunchKernel@select_f16:1"
GROUPS = ["drop_small_stuff", "select", "mask_bits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "failing"),
    [
        (f"{SELECT}:700:sticky", "CUDA_ERROR_ILLEGAL_ADDRESS", {"select"}),
        (f"{SELECT}:crash", "its process ended: SIGABRT", {"select"}),
        (f"{SELECT}:hang", "it took more than 20 s and was ended", {"select"}),
        (f"{SELECT}:2", "CUDA_ERROR_OUT_OF_MEMORY", {"select"}),
        ("cuModuleLoadDataEx:0:218", "CUDA_ERROR_INVALID_PTX", set(GROUPS)),
    ],
)
def test_a_fault_of_the_driver_costs_no_other_group(
    driver: None, monkeypatch: pytest.MonkeyPatch, fault: str, error: str, failing: set[str]
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_FAULT", fault)
    groups = {name: CHECKS[name] for name in GROUPS}
    report = run.run_groups(groups, None, small=True, limit_s=20, say=lambda _: None)
    assert report.data["complete"] and report.status == 1
    assert list(report.data["groups"]) == GROUPS
    failures = report.failures()
    assert {record.get("group", record.get("kernel")) for record in failures} == failing
    assert any(error in record["error"] for record in failures)
    passed = {check["kernel"] for check in report.data["checks"] if check["ok"]}
    assert passed == ({*GROUPS} if failing == {"select"} else set())  # select of float32, before


@pytest.mark.slow
def test_a_case_that_fails_costs_no_other_case(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_FAULT", f"{SELECT}:2")
    groups = {"select": CHECKS["select"]}
    report = run.run_groups(groups, None, small=True, say=lambda _: None)
    (failure,) = report.failures()
    assert failure["kernel"] == "select" and failure["case"].endswith("float16")
    titles = [case.title for case in cases_of("select") if case.small]
    assert {check["case"] for check in report.data["checks"]} == set(titles)
