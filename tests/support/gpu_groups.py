"""Groups of checks and times that go well or badly, for the processes that `run_groups` starts."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from condinst_infer.cuda.driver import Device
from condinst_infer.errors import SessionError
from condinst_infer.profiling.gpu.checks import Check
from condinst_infer.system.timing import summary


def right(device: Device, small: bool) -> Iterator[Check | dict[str, Any]]:
    print("a library writes to stdout")
    yield Check("right", "small" if small else "large", 0, 0)
    yield {"what": "a launch", "times_ms": {"ours": summary([1.0])}}


def wrong(device: Device, small: bool) -> Iterator[Check | dict[str, Any]]:
    yield Check("wrong", "no number", float("nan"), 1)
    yield Check("wrong", "too far", 2, 1)
    yield Check("wrong", "near", 1, 1)
    yield {"what": "a launch", "error": "SessionError: out of memory"}


def raising(device: Device, small: bool) -> Iterator[Check]:
    yield Check("raising", "before", 0, 0)
    raise SessionError("the GPU is lost.")


def crashing(device: Device, small: bool) -> Iterator[Check]:
    yield Check("crashing", "before", 0, 0)
    for number in range(3, 20):  # in the middle of a line: to the worker's own stdout
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                os.write(number, b'{"check": {"kernel')
    os.abort()


def leaving(device: Device, small: bool) -> Iterator[Check]:
    yield Check("leaving", "before", 0, 0)
    os._exit(0)


def hanging(device: Device, small: bool) -> Iterator[Check]:
    yield Check("hanging", f"process {os.getpid()}", 0, 0)
    time.sleep(1000)
