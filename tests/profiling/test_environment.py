"""What a result file says of the machine, and that it is whole."""

import json
from pathlib import Path

import numpy as np
import pytest

from condinst_infer.profiling.environment import PeakMemory, environment, write_result


def test_a_result_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "result.json"
    write_result(path, {"ratio": 2.0})
    assert json.loads(path.read_text()) == {"ratio": 2.0}
    with pytest.raises(TypeError):
        write_result(path, {"ratio": object()})
    assert json.loads(path.read_text()) == {"ratio": 2.0}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_environment_names_the_machine() -> None:
    found = environment()
    assert found["cpu"] and found["cores"] >= 1 and found["packages"]["numpy"]


def test_peak_memory_is_what_was_held_since(tmp_path: Path) -> None:
    held = np.ones(64 << 20, np.uint8)
    del held
    memory = PeakMemory()
    held = np.ones(128 << 20, np.uint8)
    del held
    found = memory.read()
    assert found["how"].startswith(("VmHWM", "ru_maxrss"))
    if found["before_mib"] is not None and "before the model" in found["how"]:
        assert 120 < found["peak_mib"] - found["before_mib"] < 160


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    known = PeakMemory().read()["peak_mib"]
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError))
    found = PeakMemory().read()
    assert found["how"] == "ru_maxrss, from the start of the process"
    assert found["before_mib"] is None and 0.9 * known < found["peak_mib"] < 100_000
