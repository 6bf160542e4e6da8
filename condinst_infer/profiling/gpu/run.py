"""Checks and times of the kernels on this GPU, each group of them in a process of its own.

`condinst doctor --gpu-check` runs them. A kernel that ends or hangs its process, or that leaves the
GPU's context in error, takes nothing else with it, and what was found is in the file at once.
"""

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from condinst_infer.errors import ConfigError, SessionError, did_you_mean
from condinst_infer.profiling.gpu.groups import CHECKS, TIMES, groups_of
from condinst_infer.profiling.gpu.report import Report

LIMIT_S = 120.0  # of one group: seconds, unless torch or the driver's compiler is slow
_GRACE_S = 10.0  # for a killed process to end; one that waits for the driver may not
_STDERR_CHARACTERS = 4000  # the last ones, in the report of a process that failed
_WORKER = "condinst_infer.profiling.gpu.worker"
_TERMINATED = 128 + signal.SIGTERM

Say = Callable[[str], None]


def gpu_check(
    *,
    only: str | None,
    output: Path | None,
    small: bool,
    print_json: bool,
    limit_s: float = LIMIT_S,
) -> int:
    """Check and time the kernels, all or one of them; print and write what comes out.

    Args:
        only: the kernel; None takes all.
        output: the JSON file; None writes none.
        small: sizes for compute-sanitizer and the CPU emulator.
        print_json: the report goes to stdout, the lines for people to stderr.

    Returns:
        The exit status: 1 if a check failed, or a group had an error.

    Raises:
        ConfigError: there is no such kernel.
        SessionError: there is no GPU, driver or package to reach it.
    """
    groups = groups_of(only)
    if not groups:
        raise ConfigError(
            f"there is no kernel {only!r}{did_you_mean(f'{only}', CHECKS)} "
            f"--only takes one of: {', '.join(CHECKS)}"
        )

    def say(line: str) -> None:
        print(line, file=sys.stderr if print_json else sys.stdout, flush=True)

    report = run_groups(groups, output, small=small, limit_s=limit_s, say=say)
    say(_last_line(report))
    if print_json:
        print(json.dumps(report.data))
    return report.status


def run_groups(
    groups: Mapping[str, str],
    output: Path | None,
    *,
    small: bool,
    limit_s: float = LIMIT_S,
    say: Say = print,
) -> Report:
    """Run each group in a process of its own, and write what it gives as it comes.

    Args:
        groups: MODULE:FUNCTION by name, as in groups.py; functions are (device, small) -> checks
            and rows.
        output: the JSON file; None keeps the results in memory.
        small: sizes for the CPU.
        limit_s: seconds a group may take.
        say: prints a line for people.

    Returns:
        The report, which is complete.

    Raises:
        SessionError: the first group finds no GPU, driver or package to reach it.
    """
    report = Report(output, small=small)
    with _sigterm_raises():
        for name, target in groups.items():
            _Group(name, target, report, say).run(small=small, limit_s=limit_s)
    report.set(complete=True)
    return report


class _Group:
    """One group: its process, and what it has said so far."""

    def __init__(self, name: str, target: str, report: Report, say: Say) -> None:
        self._name, self._report, self._say = name, report, say
        own = (CHECKS | TIMES).get(name) == target
        self._argument = name if own else f"{name}={target}"
        self._checks: list[dict[str, Any]] = []
        self._done = self._failed = False

    def run(self, *, small: bool, limit_s: float) -> None:
        """Start the process, take its lines, end it, and say how it went."""
        start = time.monotonic()
        command = [sys.executable, "-X", "faulthandler", "-m", _WORKER, self._argument, "--watch"]
        command += ["--small"] if small else []
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
            try:
                for line in _lines(process, start + limit_s):
                    self._take(line)
                process.wait(_GRACE_S)
            except (TimeoutError, subprocess.TimeoutExpired):
                self._fail(f"it took more than {limit_s:g} s and was ended")
            except (KeyboardInterrupt, SystemExit) as stop:
                by = "Ctrl-C" if isinstance(stop, KeyboardInterrupt) else "SIGTERM"
                self._fail(f"it was stopped by {by}")
                raise
            finally:
                _end(process)
            if not self._done and not self._failed:
                details = {"returncode": process.returncode, "stderr": _tail(errors)}
                self._fail(f"its process ended: {_ending(process.returncode)}", **details)
        seconds = time.monotonic() - start
        self._report.set(groups=self._report.data["groups"] | {self._name: round(seconds, 3)})
        self._summarise(seconds)

    def _take(self, line: bytes) -> None:
        """Put a line of the worker into the report; it may have died in the middle of one."""
        try:
            (kind, content), *_ = json.loads(line).items()
        except ValueError:
            return
        if kind == "device" and self._report.data["device"] is None:
            self._report.set(device=content)
            capability = ".".join(map(str, content["compute_capability"]))
            version = content["driver_cuda"]
            self._say(f"{content['name']}, compute capability {capability}, CUDA {version}")
        elif kind == "unavailable":
            self._fail(content)
            if self._report.data["device"] is None:
                raise SessionError(content)
        elif kind == "check":
            self._checks.append(content)
            self._report.add("checks", content)
        elif kind == "row":
            self._report.add("results", content)
            self._say(_row_line(content))
        elif kind == "error":
            self._fail(content)
        elif kind == "done":
            self._done = True

    def _fail(self, error: str, **details: Any) -> None:
        self._failed = True
        self._report.add("errors", {"group": self._name, "error": error, **details})

    def _summarise(self, seconds: float) -> None:
        """Say how many checks passed, each that did not, and what ended the group."""
        checks, failed = self._checks, [check for check in self._checks if not check["ok"]]
        if checks:
            passed = f"{len(checks) - len(failed)} of {len(checks)}" if failed else len(checks)
            self._say(f"{self._name}: {passed} checks passed, {seconds:.1f} s")
        for check in failed:
            self._say(f"  FAILED {_check_line(check)}")
        for error in self._report.data["errors"]:
            if error["group"] == self._name:
                self._say(f"  FAILED {self._name}: {error['error']}")


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """Lines of the process's stdout until it ends; TimeoutError at `deadline`.

    Another thread reads, for a read could wait for a process that not even a kill ends.
    """
    lines: SimpleQueue[bytes | None] = SimpleQueue()

    def read(stdout: IO[bytes]) -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    assert process.stdout is not None
    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise TimeoutError from None
        if line is None:
            return
        yield line


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process if it still runs, and close what it was read from."""
    process.kill()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        return  # it waits for the driver; its pipes stay open until it is gone
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _tail(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")[-_STDERR_CHARACTERS:]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the program as sys.exit does, so that the worker ends with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only that thread may set a handler
        return

    def leave(*_: object) -> None:
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_line(check: Mapping[str, Any]) -> str:
    if "error" in check:
        return f"{check['kernel']}, {check['case']}: {check['error']}"
    return (
        f"{check['kernel']}, {check['case']}: {check['difference']} from {check['against']}, "
        f"at most {check['limit']} is right"
    )


def _row_line(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"  FAILED {row['what']}: {row['error']}"
    times = {name: time["p50"] * 1000 for name, time in row["times_ms"].items()}
    return f"{row['what']}: {', '.join(f'{name} {us:.0f}' for name, us in times.items())} us"


def _last_line(report: Report) -> str:
    failed = len(report.failures())
    if not failed:
        return f"All right. The report is in {report.output}." if report.output else "All right."
    if report.output:
        return f"{failed} failed. Please attach {report.output} to an issue: it says all we need."
    return f"{failed} failed. Run it again with -o gpu-check.json and attach that to an issue."
