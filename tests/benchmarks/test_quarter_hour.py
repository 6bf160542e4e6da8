"""quarter_hour.sh tells how every step went and keeps what was found, whatever breaks.

First its steps with a made-up Python; then a rehearsal of all of it on the emulated driver, and
one with a fault in each step.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.profiling.gpu.groups import CHECKS, TIMES
from engines import emulator
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "quarter_hour.sh"
TOOLS = ("memcheck", "racecheck", "synccheck")
PROFILED = ("class_nms", "dynamic_mask_head_8_f16", "paste_f16", "owners_of_things")
STEPS = (
    "versions", "nvidia-smi", *TOOLS, "checks", "times", "pipelines", "result",
    *(f"ncu-{kernel}" for kernel in PROFILED), "engine-build", "engine-predict", "engine-bench",
)  # fmt: skip

# what a call is asked to do, by words of its command line: fail, or hang
FAULTS = """
case " $* " in
*" $FAIL "*) echo "made up: $FAIL"; exit 3 ;;
*" $HANG "*) echo begun; sleep 60 & wait ;;
esac
"""
# as the tools of NVIDIA: options, then a command that is run
WRAPPER = """
while [ $# -gt 0 ] && [ "$1" != "$PYTHON" ]; do shift; done
"$@"
"""
# as an interpreter: every module is there, and an engine is written
MADE_UP_PYTHON = """
echo "$@"
[ "$3" != build ] || touch "$OUT/nuclei.engine"
"""


def tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with what an NVIDIA card comes with, and a made-up Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("compute-sanitizer", "ncu"):
        tool(folder, name, FAULTS + WRAPPER)
    tool(folder, "nvidia-smi", FAULTS + "echo Made-up card\n")
    tool(folder, "python", FAULTS + MADE_UP_PYTHON)
    return folder


def start(out: Path, *options: str, **variables: object) -> subprocess.Popen[str]:
    settings = {"FAIL": "no such word", "HANG": "no such word", "OUT": out} | variables
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    return subprocess.Popen(
        [SCRIPT, *options, out],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def made_up(out: Path, tools: Path, *options: str, **variables: str) -> tuple[int, dict[str, str]]:
    """Exit status and verdict of each step, with the made-up Python."""
    path = f"{tools}:{os.environ['PATH']}"
    process = start(out, *options, PATH=path, PYTHON=tools / "python", **variables)
    process.communicate(timeout=60)
    return process.returncode, verdicts(out)


def verdicts(out: Path) -> dict[str, str]:
    """What the summary says of each step."""
    lines = (out / "summary.txt").read_text().splitlines()
    return {line[:28].strip(): line[29:43].strip() for line in lines}


def lines_of(out: Path) -> dict[str, str]:
    lines = (out / "summary.txt").read_text().splitlines()
    return {line.split()[0]: line for line in lines}


def packed(out: Path) -> set[str]:
    """Names of the files in the archive to send."""
    with tarfile.open(f"{out}.tar.gz") as archive:
        return {Path(name).name for name in archive.getnames()}


def test_every_step_is_told_and_packed(tmp_path: Path, tools: Path) -> None:
    status, found = made_up(tmp_path / "out", tools)
    assert found == dict.fromkeys([*STEPS, "all"], "ok") and status == 0
    expected = {f"{step}.log" for step in STEPS} | {"summary.txt", "out"}
    assert packed(tmp_path / "out") == expected  # an engine is large, and of no use elsewhere


def test_a_missing_tool_is_no_failure(tmp_path: Path, tools: Path) -> None:
    for name in ("compute-sanitizer", "ncu", "nvidia-smi"):
        (tools / name).unlink()
    status, found = made_up(tmp_path / "out", tools, FAIL="tensorrt")
    absent = {name for name, verdict in found.items() if verdict == "not installed"}
    ncu = {f"ncu-{kernel}" for kernel in PROFILED}
    assert absent == {"nvidia-smi", *TOOLS, *ncu, "engine-build"}
    assert status == 0 and found["checks"] == found["all"] == "ok"


FAILING = {
    "versions": "doctor",
    "nvidia-smi": "-q",
    **{name: name for name in TOOLS},
    **{name: f"benchmarks.gpu.pipelines {name}" for name in ("checks", "times", "pipelines")},
    "result": "--merge",
    **{f"ncu-{kernel}": f"--kernel-name {kernel}" for kernel in PROFILED},
    **{f"engine-{verb}": f"condinst_infer {verb}" for verb in ("build", "predict", "bench")},
}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_fails_alone(tmp_path: Path, tools: Path, step: str) -> None:
    status, found = made_up(tmp_path / "out", tools, FAIL=FAILING[step])
    wrong = {name for name, verdict in found.items() if verdict != "ok"}
    assert status == 1 and wrong == {step, "all"} and found[step] == "failed"
    assert f"made up: {FAILING[step]}" in lines_of(tmp_path / "out")[step]
    unreached = {"engine-predict", "engine-bench"} if step == "engine-build" else set()
    assert set(found) == {*STEPS, "all"} - unreached


@pytest.mark.slow
@pytest.mark.parametrize("step", ["nvidia-smi", "racecheck", "checks", "ncu-paste_f16"])
def test_a_step_that_hangs_is_ended(tmp_path: Path, tools: Path, step: str) -> None:
    out = tmp_path / "out"
    begin = time.monotonic()
    status, found = made_up(out, tools, "--limit-scale", "0.05", HANG=FAILING[step])
    assert status == 1 and found[step] == "timed out" and time.monotonic() - begin < 30
    assert [name for name, verdict in found.items() if verdict != "ok"] == [step, "all"]
    assert "begun" in lines_of(out)[step]


def test_no_step_begins_when_the_time_is_over(tmp_path: Path, tools: Path) -> None:
    status, found = made_up(tmp_path / "out", tools, "--limit-scale", "0.0001", HANG="doctor")
    assert status == 1 and found["versions"] == "timed out"
    assert found["checks"] == found["engine-build"] == "no time left"
    status, found = made_up(tmp_path / "none", tools, "--limit-scale", "0")
    assert status == 1 and set(found.values()) == {"no time left", "failed"}  # and "all"


def test_pipelines_need_torch(tmp_path: Path, tools: Path) -> None:
    status, found = made_up(tmp_path / "out", tools, FAIL="torch")
    assert status == 0 and found["pipelines"] == "not installed"
    merged = (tmp_path / "out" / "result.log").read_text()
    assert "/checks.json " in merged and "pipelines.json" not in merged


def test_a_step_that_does_not_exist_is_told(tmp_path: Path, tools: Path) -> None:
    options = ("--only", "checks", "--only", "check")
    status, found = made_up(tmp_path / "out", tools, *options)
    assert status == 1 and found == {"checks": "ok", "check": "no such step", "all": "failed"}


def test_one_step_can_be_run_alone(tmp_path: Path, tools: Path) -> None:
    options = ("--only", "checks", "--only", "racecheck")
    status, found = made_up(tmp_path / "out", tools, *options)
    assert status == 0 and list(found) == ["racecheck", "checks", "all"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_with_what_is_there(tmp_path: Path, tools: Path, stop: int) -> None:
    out = tmp_path / "out"
    path = f"{tools}:{os.environ['PATH']}"
    process = start(out, PATH=path, PYTHON=tools / "python", HANG=FAILING["times"])
    log = out / "times.log"
    eventually(lambda: log.exists() and "begun" in log.read_text())
    process.send_signal(stop)
    text, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "send this file" in text
    found = verdicts(out)
    assert found["checks"] == "ok" and "interrupted" in found and "pipelines" not in found
    assert {"summary.txt", "checks.log", "times.log"} <= packed(out)
    assert not running(str(tools))


def running(word: str) -> list[str]:
    """Command lines of processes that name `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return [line for line in found if word in line]


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["--other", "a"], ["--limit-scale", "x", "a"], ["--limit-scale"]]
)
def test_a_wrong_call_is_told(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [SCRIPT, *words], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2 and "usage: benchmarks/gpu/quarter_hour.sh OUT" in done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the emulated driver."""
    return emulator.build(tmp_path_factory.mktemp("driver")).parent


def rehearsal(
    out: Path, tools: Path, driver: Path, **variables: object
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Exit status, verdict of each step, and the results, on the emulated driver."""
    settings: dict[str, object] = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "LD_LIBRARY_PATH": driver,
    }
    process = start(out, "--small", "--limit-scale", "5", **settings | variables)
    text, _ = process.communicate(timeout=1200)
    print(text)  # the log of the rehearsal
    result = out / "no-gpu-kernels-run-on-the-cpu.json"
    return process.returncode, verdicts(out), json.loads(result.read_text())


@pytest.mark.slow
def test_a_rehearsal_on_the_emulated_driver(tmp_path: Path, tools: Path, driver: Path) -> None:
    status, found, result = rehearsal(tmp_path / "out", tools, driver)
    assert {name for name, verdict in found.items() if verdict != "ok"} <= {"engine-build"}
    assert status == 0 and result["complete"] and result["small"] and not result["errors"]
    assert all(check["ok"] for check in result["checks"])
    assert {check["kernel"] for check in result["checks"]} == {*CHECKS, "pipeline"}
    assert set(result["groups"]) == {*CHECKS, *TIMES, "pipelines"}
    against = {check["against"] for check in result["checks"] if check["kernel"] == "pipeline"}
    assert against == {
        "a plain run", "one in host memory", "PyTorch on the CPU", "ONNX Runtime on the CPU"
    }  # fmt: skip
    assert all(row["times_ms"]["ours"]["p50"] > 0 for row in result["results"])


@pytest.mark.slow
def test_a_rehearsal_with_a_fault_in_each_step(tmp_path: Path, tools: Path, driver: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tensorrt.py").write_text("raise ImportError('libnvinfer.so: made up')")
    status, found, result = rehearsal(
        tmp_path / "out",
        tools,
        driver,
        EMULATED_CUDA_FAULT="cuLaunchKernel@class_nms:1:700:sticky,cuLaunchKernel@preprocess:1:crash",
        FAIL="--kernel-name paste_f16",
        PYTHONPATH=broken,
    )
    lost = {*TOOLS, "checks", "times", "pipelines", "ncu-class_nms", "ncu-paste_f16"}
    lost |= {"engine-build", "all"}
    assert status == 1 and {name for name in found if found[name] != "ok"} == lost
    wrong = {error["group"] for error in result["errors"]}
    assert {"class_nms", "preprocess", "preprocess times"} <= wrong
    others = set(CHECKS) - {"class_nms", "preprocess"}
    right = {check["kernel"] for check in result["checks"] if check["ok"]}
    assert others <= right and "class_nms" not in right
    timed = {
        row["what"].split(",")[0].split()[0] for row in result["results"] if "error" not in row
    }
    assert timed == {"mask", "paste", "select", "panoptic"}
    assert {"checks.json", "checks.log", "memcheck.log", "engine-build.log"} <= packed(
        tmp_path / "out"
    )
