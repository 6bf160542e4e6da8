"""Groups of GPU checks in processes of their own: whatever one of them does, the others count."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.errors import SessionError
from condinst_infer.profiling.gpu.run import run_groups
from tests.support.emulated_driver import driver_folder, environment

ROOT = Path(__file__).parents[3]
GROUPS = "tests.support.gpu_groups"
PROGRAM = f"""
import sys
from pathlib import Path
from condinst_infer.profiling.gpu.run import run_groups
run_groups({{n: f"{GROUPS}:{{n}}" for n in ("right", "hanging")}}, Path(sys.argv[1]), small=True)
"""


@pytest.fixture
def driver(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The emulated driver's folder; processes that are started find it."""
    folder = driver_folder(tmp_path_factory, "class_nms")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.chdir(ROOT)  # where `tests` is
    return folder


def run(*names: str, output: Path | None = None, **options: Any) -> tuple[dict, int, list[str]]:
    """The report, the exit status and the lines of some groups."""
    said: list[str] = []
    groups = {name: f"{GROUPS}:{name}" for name in names}
    report = run_groups(groups, output, small=True, say=said.append, **options)
    return report.data, report.status, said


def test_each_group_counts_whatever_the_others_do(driver: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "gpu.json"
    names = ("wrong", "raising", "crashing", "right")
    data, status, said = run(*names, output=output)
    assert status == 1 and json.loads(output.read_text()) == data
    assert data["complete"] and data["small"] and list(data["groups"]) == list(names)
    assert data["device"]["name"].startswith("no GPU") and data["environment"]["packages"]["numpy"]
    oks = [(check["kernel"], check["ok"]) for check in data["checks"]]
    assert oks[:3] == [("wrong", False), ("wrong", False), ("wrong", True)]
    assert oks[3:] == [(name, True) for name in ("raising", "crashing", "right")]
    assert data["checks"][0]["difference"] is None and data["checks"][-1]["case"] == "small"
    assert [row["what"] for row in data["results"]] == ["a launch", "a launch"]
    raised, aborted = data["errors"]
    assert raised == {"group": "raising", "error": "the GPU is lost."}
    assert aborted["error"] == "its process ended: SIGABRT" and aborted["returncode"] == -6
    assert "gpu_groups.py" in aborted["stderr"]  # the stack
    text = "\n".join(said)
    assert "wrong: 1 of 3 checks passed" in text and "right: 1 checks passed" in text
    assert "FAILED wrong, too far: 2 from torch, at most 1 is right" in text
    assert "FAILED a launch: SessionError: out of memory" in text
    assert "a launch: ours 1000 us" in text and "a library" not in text


NO_DRIVER = "def cuInit(flags): raise RuntimeError('there is no libcuda')"
NO_BINDINGS = "raise ModuleNotFoundError(name='cuda.bindings.driver')"


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (NO_DRIVER, "there is no NVIDIA driver here"),
        (NO_BINDINGS, r"pip install 'condinst-infer\[cuda\]'"),
    ],
)
def test_where_there_is_no_gpu_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, sentence: str
) -> None:
    bindings = tmp_path / "cuda" / "bindings"
    bindings.mkdir(parents=True)
    (bindings / "__init__.py").touch()
    (bindings / "driver.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with pytest.raises(SessionError, match=sentence):
        run("right", "wrong", output=tmp_path / "gpu.json")
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert not data["complete"] and [error["group"] for error in data["errors"]] == ["right"]


@pytest.mark.slow
def test_a_group_that_hangs_or_just_ends_is_told(driver: Path) -> None:
    data, status, _ = run("hanging", "leaving", "right", limit_s=15)
    assert status == 1 and [error["error"] for error in data["errors"]] == [
        "it took more than 15 s and was ended",
        "its process ended: exit status 0",
    ]
    assert [check["kernel"] for check in data["checks"]] == ["hanging", "leaving", "right"]
    assert not alive(data["checks"][0]["case"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_the_file_holds_what_was_done(
    driver: Path, tmp_path: Path, number: int
) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-c", PROGRAM, str(output)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(driver), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:  # the file is whole whenever it is read
            data = json.loads(output.read_text()) if output.exists() else {"checks": []}
            if len(data["checks"]) == 2:
                break
        process.send_signal(number)
        process.communicate(timeout=30)
    finally:
        process.kill()
    data = json.loads(output.read_text())
    assert not data["complete"] and list(data["groups"]) == ["right"]
    assert [check["kernel"] for check in data["checks"]] == ["right", "hanging"]
    name = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}.get(signal.Signals(number))
    stopped = [f"it was stopped by {name}"] if name else []
    assert [error["error"] for error in data["errors"]] == stopped
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
    end = time.monotonic() + 30
    while alive(data["checks"][1]["case"]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(data["checks"][1]["case"])


def alive(case: str) -> bool:
    """Whether the process that `hanging` names runs."""
    state = Path("/proc", case.removeprefix("process "), "stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
