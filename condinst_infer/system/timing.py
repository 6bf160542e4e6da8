"""Timing that can be compared: interleaved runs and percentiles."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

SIZES = ((480, 640), (1080, 1920), (2160, 3840))  # (height, width) of frames
REPEATS, WARMUP = 10, 2


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    after_turn: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each function, `repeats` values each.

    The functions alternate, so that a machine that slows down slows all of them. `after_turn` is
    called each time all have run once, in the warm-up too.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            elapsed_ms = (time.perf_counter() - start) * 1000
            if turn >= warmup:
                times[name].append(elapsed_ms)
        after_turn()
    return times


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    """Count, mean, extremes and p50, p90, p99 of `times_ms`, which must not be empty.

    A percentile is an observed value: the smallest that at least so many percent do not exceed.
    """
    ordered = sorted(times_ms)
    percentiles = {
        f"p{q}": ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in (50, 90, 99)
    }
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        **percentiles,
        "max": ordered[-1],
    }
