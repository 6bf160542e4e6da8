"""Files of others, mutated, through `condinst` in one process with little memory and time.

    python -m tests.support.hostile_files FOLDER COUNT [--huge] [--everywhere] [KIND ...]

writes a JSON object: how many files of each kind were tried and refused, and what failed. It runs
in a process of its own, whose memory is limited, see `run_hostile_files`.
"""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from condinst_infer.cli.main import main
from condinst_infer.errors import CondInstError
from tests.support import hostile_kinds
from tests.support.mutations import (
    HUGE,
    NASTY,
    REPEATABLE,
    changed_json,
    damaged_bytes,
    put_everywhere,
)

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 4 << 30  # of addresses
SECONDS = 2  # of processor time, for one file


class Outcome(NamedTuple):
    """The end of one command."""

    status: int | str  # exit status, or why it failed
    text: str  # stderr, or the traceback


class TimeUp(BaseException):
    """One file took too long."""


@contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeUp

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def outcome(command: Sequence[str] | Callable[[], object]) -> Outcome:
    """Run words of `condinst`, or a function that may raise errors of this package."""
    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    try:
        with _alarm(), redirect_stdout(out), redirect_stderr(err):
            if callable(command):
                try:
                    command()
                    status = 0
                except CondInstError as error:
                    print(f"condinst: {' '.join(str(error).split())}", file=sys.stderr)
                    status = 2
            else:
                status = main(command)
    except TimeUp:
        return Outcome("too long", traceback.format_exc()[-600:])
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:
        return Outcome(type(error).__name__, traceback.format_exc()[-900:])
    text = err.getvalue()
    if time.process_time() - started > SECONDS:
        return Outcome("too long", text[-600:])
    if status not in (0, 2):
        return Outcome(f"status {status}", text[-600:])
    if "Traceback" in text or len(text) > 4000:
        return Outcome("text", f"{len(text)} characters: {text[:600]}")
    if status == 2 and (text.count("\n") != 1 or not text.startswith("condinst: ")):
        return Outcome("not one sentence", text[:600])
    return Outcome(status, text)


def try_kind(name: str, folder: Path, count: int, *, huge: bool) -> dict[str, Any]:
    """Try `count` mutated files of a kind; facts for JSON."""
    kind = hostile_kinds.KINDS[name](folder)
    nasty = (*NASTY, *HUGE) if huge else NASTY
    strategies = []
    if kind.value is not None:
        strategies.append(changed_json(kind.value, nasty=nasty))
    if kind.data is not None:
        strategies.append(damaged_bytes(kind.data))
    found: dict[str, Any] = {"tried": 0, "refused": 0, "failures": []}

    @settings(REPEATABLE, max_examples=count)
    @given(st.one_of(strategies))
    def attempt(content: str | bytes) -> None:
        if found["tried"] >= count:
            return
        _attempt(kind.command(content), content, folder, found)

    attempt()
    return found


def try_everywhere(name: str, folder: Path) -> dict[str, Any]:
    """Try every nasty value in the place of every other one; facts for JSON."""
    kind = hostile_kinds.KINDS[name](folder)
    found: dict[str, Any] = {"tried": 0, "refused": 0, "failures": []}
    for text in () if kind.value is None else put_everywhere(kind.value):
        _attempt(kind.command(text), text, folder, found)
    return found


def _attempt(
    command: hostile_kinds.Command, content: str | bytes, folder: Path, found: dict[str, Any]
) -> None:
    """Run one command and add to `found` how it ended; what fails stays in `folder`."""
    end = outcome(command)
    found["tried"] += 1
    found["refused"] += end.status == 2
    if end.status not in (0, 2):
        shown = content if isinstance(content, bytes) else content.encode(errors="replace")
        (folder / f"failure-{len(found['failures'])}").write_bytes(shown)
        found["failures"].append([*end])


def run_hostile_files(
    folder: Path, count: int, *, huge: bool = False, everywhere: bool = False
) -> dict[str, Any]:
    """What the command above prints, for `count` files of all kinds together.

    Args:
        huge: values of 10 MB too.
        everywhere: instead, each nasty value in the place of each value.

    Raises:
        AssertionError: the process crashed, which no file may make it do.
    """
    command = [sys.executable, "-m", "tests.support.hostile_files", str(folder), str(count)]
    ran = subprocess.run(
        [*command, *(["--huge"] if huge else []), *(["--everywhere"] if everywhere else [])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def _main(words: Sequence[str]) -> None:
    huge, everywhere = "--huge" in words, "--everywhere" in words
    folder, count, *names = [word for word in words if not word.startswith("--")]
    names = names or list(hostile_kinds.KINDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = {}
    for name in names:
        place = Path(folder) / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        started = time.perf_counter()
        if everywhere:
            report[name] = try_everywhere(name, place)
        else:
            report[name] = try_kind(name, place, -(-int(count) // len(names)), huge=huge)
        report[name]["seconds"] = round(time.perf_counter() - started, 2)
    print(json.dumps(report))


if __name__ == "__main__":
    _main(sys.argv[1:])
