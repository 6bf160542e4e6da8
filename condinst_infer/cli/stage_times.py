"""Stages of a long command on stderr, with the time each took."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stage_times() -> Iterator[Callable[[str], None]]:
    """Give a function that is called with the name of each stage when the stage begins.

    The name is printed at once, the seconds when the stage ends: "tracing ... 12.3 s".
    """
    start: float | None = None

    def end() -> None:
        if start is not None:
            print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    def begin(stage: str) -> None:
        nonlocal start
        end()
        print(f"{stage} ...", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()

    try:
        yield begin
    except BaseException:
        if start is not None:
            print(file=sys.stderr, flush=True)  # the error gets a line of its own
        raise
    end()
