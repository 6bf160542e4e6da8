"""How the scripts that time whole images take turns, and the options they share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.synthetic_models import MODELS
from condinst_infer.system import timing

RESULTS = Path(__file__).parent / "results" / "whole_image"
Functions = Mapping[str, Callable[[], object]]


def summaries(
    sides: Sequence[Functions], *, repeats: int, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Summaries in milliseconds of all functions of all sides, by name, interleaved.

    The threads of a runtime spin for a while before they sleep, and what comes next waits for the
    cores. So the first function of each side, functions of one runtime, is run once more before
    it, which does not count.
    """
    turns: dict[str, Callable[[], object]] = {}
    for side in sides:
        first = next(iter(side))
        turns |= {f"{first}, before": side[first], **side}
    times = timing.interleaved(turns, repeats=repeats, warmup=warmup)
    return {name: timing.summary(times[name]) for side in sides for name in side}


def parser(doc: str | None, result: str, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options all scripts have, for the script with this docstring."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    made.add_argument("--threads", type=int, default=2, help="of every side (default: 2)")
    made.add_argument("--keep", type=Path, metavar="DIR", help="where exported models stay")
    made.add_argument("--models", nargs="+", default=list(MODELS), metavar="PRESET")
    made.add_argument("--output", type=Path, default=RESULTS / result, help="JSON file to write")
    return made
