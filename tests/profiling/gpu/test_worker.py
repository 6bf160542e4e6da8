"""The worker of the GPU check in this process, on the emulated driver."""

import io
import json
import sys
from typing import Any

import pytest

from condinst_infer.profiling.gpu import groups, worker
from engines.emulator import Emulator


def lines(
    monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """Exit status and records of a call with these words."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["worker", *words])
    monkeypatch.setattr(worker, "_own_stdout", lambda: out)
    status = worker.main()
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    return status, [next(iter(record.items())) for record in records]


@pytest.mark.parametrize("options", [(), ("--stored",)])
def test_a_group_tells_the_device_each_check_and_that_it_is_done(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    status, records = lines(monkeypatch, "select", "--small", *options)
    kinds = [kind for kind, _ in records]
    assert (status, kinds[:2], kinds[-1]) == (0, ["device", "group"], "done")
    checks = [content for kind, content in records if kind == "check"]
    assert checks and all(check["ok"] for check in checks)
    assert {check["against"] for check in checks} == (
        {"stored"} if options else {"stored", "torch"}
    )


def test_wrong_results_and_errors_end_with_status_1(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(groups.TIMES, "broken", "tests.support.gpu_groups:nothing_of_this_name")
    status, records = lines(monkeypatch, "broken", "--small")
    assert status == 1 and "nothing_of_this_name" in dict(records)["error"]
    cuda_emulator.fault("cuLaunchKernel@select_f32:1:719")
    status, records = lines(monkeypatch, "select", "--small", "--stored")
    cuda_emulator.fault("")
    failed = [content for kind, content in records if kind == "check" and not content["ok"]]
    assert status == 1 and len(failed) == 1 and "CUDA_ERROR_LAUNCH_FAILED" in failed[0]["error"]


def test_without_a_gpu_one_sentence_says_so(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_emulator.devices(0)
    status, records = lines(monkeypatch, "select")
    cuda_emulator.devices(1)
    assert (status, [kind for kind, _ in records]) == (1, ["unavailable"])
    assert "there is no GPU 0; the driver sees 0" in str(records[0][1])
