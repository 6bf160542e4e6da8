"""Harness of the scripts that time whole images: interleaved runs, shared options, main."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.synthetic_models import MODELS, folder
from condinst_infer.profiling.environment import environment, write_result
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
    calls: dict[str, Callable[[], object]] = {}
    for side in sides:
        first = next(iter(side))
        calls |= {f"{first}, before": side[first], **side}
    times = timing.time_interleaved(calls, repeats=repeats, warmup=warmup)
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


def main(
    doc: str | None,
    result: str,
    measure: Callable[..., dict[str, Any]],
    describe: Callable[[dict[str, Any]], Iterable[str]],
    *,
    repeats: int,
) -> None:
    """Measure each model, print the lines that describe the result, and write all results.

    Args:
        doc, result, repeats: as in `parser`.
        measure: called with name, folder of exports, `repeats` and `threads`.
    """
    options = parser(doc, result, repeats=repeats).parse_args()
    settings = {"repeats": options.repeats, "threads": options.threads}
    results = []
    with folder(options.keep) as exports:
        for name in options.models:
            results.append(measure(name, exports, **settings))
            for line in describe(results[-1]):
                print(line, flush=True)
    write_result(options.output, {"results": results, "environment": environment()})


def component_parser(doc: str | None, result: Path, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options of scripts that time one component, with this docstring."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    made.add_argument("--threads", type=int, default=2, help="of both sides (default: 2)")
    made.add_argument("--output", type=Path, default=result, help="JSON file to write")
    return made
