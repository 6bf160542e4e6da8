"""Stages of a long command on stderr, with the time each took."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stage_times(first: str) -> Iterator[Callable[[str], None]]:
    """Print `first` and the name of each stage that the yielded function is called with.

    A name is printed when the stage begins, its seconds when it ends: "tracing ... 12.3 s".
    """
    start = 0.0

    def begin(stage: str) -> None:
        nonlocal start
        print(f"{stage} ...", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()

    def end() -> None:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    def next_stage(stage: str) -> None:
        end()
        begin(stage)

    begin(first)
    try:
        yield next_stage
    except BaseException:
        print(file=sys.stderr, flush=True)  # the error gets a line of its own
        raise
    end()
