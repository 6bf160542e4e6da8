"""One group of checks or times in a process of its own, a JSON object per line on stdout.

    python -m condinst_infer.profiling.gpu.worker GROUP... [--small] [--stored]

GROUP is a name of groups.py, "checks" for all that are checks, or NAME=MODULE:FUNCTION for a
function (device, small) -> checks and rows. Exit status 1 if a check or the group fails.
"""

import argparse
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TextIO

from condinst_infer.cuda.driver import Device
from condinst_infer.errors import CondInstError
from condinst_infer.profiling.gpu.checks import Check, checks_of, sentence
from condinst_infer.profiling.gpu.groups import CHECKS, TIMES, cases_of, imported


def main() -> int:
    """Run the groups of the command line and write what they give."""
    parser = argparse.ArgumentParser(description="run one group of GPU checks or times")
    parser.add_argument("groups", nargs="+", metavar="GROUP")
    parser.add_argument("--small", action="store_true", help="sizes for the CPU")
    parser.add_argument("--stored", action="store_true", help="no twins, only what is stored")
    parser.add_argument("--watch", action="store_true", help="end when standard input ends")
    options = parser.parse_args()
    out = _own_stdout()
    if options.watch:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    def write(**record: Any) -> None:
        print(json.dumps(_finite(record)), file=out, flush=True)

    try:
        device = Device()
        write(device=_described(device))
    except CondInstError as error:  # no driver, no GPU, no bindings
        write(unavailable=sentence(error))
        return 1
    groups = [CHECKS if group == "checks" else [group] for group in options.groups]
    wrong = False
    for name in chain.from_iterable(groups):
        write(group=name)
        for record in _records(name, device, options.small, not options.stored):
            write(**record)
            (content,) = record.values()
            wrong |= record.keys() == {"error"} or "error" in content or not content.get("ok", True)
    write(done=True)
    return int(wrong)


def _records(name: str, device: Device, small: bool, twins: bool) -> Iterator[dict[str, Any]]:
    """Results of a group: {"check": ...}, {"row": ...}, and {"error": ...} as the last one."""
    try:
        if name in CHECKS:
            items = checks_of(name, cases_of(name), device, small, twins)
        else:
            items = imported(TIMES.get(name) or name.partition("=")[2])(device, small)
        for item in items:
            if isinstance(item, Check):
                yield {"check": item._asdict() | {"ok": item.ok}}
            elif "kernel" in item:
                yield {"check": item | {"ok": False}}
            else:
                yield {"row": item}
    except Exception as error:
        yield {"error": sentence(error)}


def _described(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "compute_capability": device.compute_capability,
        "driver_cuda": device.driver_version,
    }


def _finite(value: Any) -> Any:
    """`value` with null in the place of NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _own_stdout() -> TextIO:
    """Standard output for this module alone: what libraries print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _end_with_stdin(leave: Callable[[int], Any] = os._exit) -> None:
    """Leave when the process that started this one is gone, whatever a kernel does."""
    sys.stdin.buffer.read()
    leave(1)


if __name__ == "__main__":
    sys.exit(main())
