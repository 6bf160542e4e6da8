"""No test hangs for ever: it fails by its limit, and the process ends whatever threads do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import time_limits

PLUGIN = """
import pytest
from tests.support import time_limits

time_limits.GRACE_S = 1

def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(time_limits.TimeLimits())
"""
HEAD = """
import signal
import threading

never = threading.Event()
"""


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("never.wait()", 1, "Failed: Timeout"),
        # as C code that does not return; the interpreter sees no signal
        ("signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); never.wait()", 1, "in wait"),
        ("threading.Thread(target=never.wait).start()", 1, "Timeout (0:00:01)!"),
        ("pass", 0, "1 passed"),
    ],
    ids=["test", "C code", "thread", "none"],
)
def test_what_hangs_is_ended(body: str, status: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_it.py").write_text(f"{HEAD}\ndef test_it() -> None:\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "1"]
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); import pytest; sys.exit(pytest.main())"
    command[1:3] = ["-c", code]
    run = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == status, run.stdout + run.stderr
    assert words in run.stdout + run.stderr


def test_slow_tests_have_more_time(request: pytest.FixtureRequest) -> None:
    item = request.node
    usual = time_limits.limit_of(item)
    item.add_marker(pytest.mark.slow)
    time_limits.TimeLimits().pytest_collection_modifyitems([item])
    assert time_limits.limit_of(item) == time_limits.SLOW_S != usual
