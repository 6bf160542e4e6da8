"""`condinst bench`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from tqdm import tqdm

from condinst_infer.cli import options
from condinst_infer.errors import ConfigError
from condinst_infer.profiling.benchmark import Labelled, Settings, benchmark
from condinst_infer.system.files import replacing

_COLUMNS = 4  # side by side
_LABEL = 26  # characters
_OF_NETWORK = "  (parts of the network: shares of its time, from a profile)"
_NAMES = {"end_to_end": "end to end", "end_to_end_rle": "end to end and RLE"}
Row = Mapping[str, Any]


def bench(args: argparse.Namespace) -> int:
    """Measure, print, and write what was measured."""
    if (args.annotations is None) != (args.images is None):
        raise ConfigError("--annotations and --images belong together; give both or none.")
    labelled = args.annotations and Labelled(args.annotations, args.images, args.limit)
    with replacing(args.output) if args.output else nullcontext() as part:
        if part is not None:
            part.touch()  # what can't be written is better known before minutes of work
        with tqdm(total=100, desc="measuring", unit="%", disable=None, delay=2) as bar:
            result = benchmark(
                args.model,
                settings=Settings(**options.runtime(args)),
                images=args.image,
                sizes=args.size,
                batches=args.batch,
                repeats=args.repeats,
                warmup=args.warmup,
                labelled=labelled,
                progress=lambda share: bar.update(int(100 * share) - bar.n),
            )
        if part is not None:
            part.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if args.json else text(result))
    return 0


def text(result: Mapping[str, Any]) -> str:
    """The result as lines for people."""
    rows = result["rows"]
    lines = _heading(result)
    for first in range(0, len(rows), _COLUMNS):
        lines += ["", *_table(rows[first : first + _COLUMNS])]
    if result["accuracy"] is not None:
        lines += ["", *_accuracy(result["accuracy"])]
    return "\n".join(lines)


def _heading(result: Mapping[str, Any]) -> list[str]:
    model, machine, memory = result["model"], result["environment"], result["memory"]
    threads = "all threads" if model["threads"] is None else f"{model['threads']} threads"
    before = memory["before_mib"]
    of_it = "" if before is None else f", {before:.0f} of it before the model"
    values = {
        "model": f"{model['file']}: {model['name']}, {model['precision']}, "
        f"{model['bytes'] / 2**20:.1f} MiB",
        "sha256": model["sha256"],
        "run by": f"{model['runtime']}, {model['device']}, {threads}",
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        "gpu": ", ".join(machine["gpus"]) if model["device"] == "cuda" else "",
        "load": f"{result['load_ms']:.0f} ms with the runtime's import; first call "
        f"{result['first_call_ms']:.0f} ms",
        "memory": f"{memory['peak_mib']:.0f} MiB at most{of_it} ({memory['how']})",
    }
    return [f"{name:9}{value}" for name, value in values.items() if value]


def _table(rows: Sequence[Row]) -> list[str]:
    """A few rows of the benchmark as columns."""
    lines = []
    if len({row["image"] for row in rows}) > 1:
        lines.append(_line("image", [row["image"][-12:] for row in rows]))
    lines += [
        _line("frame", ["{}x{}".format(*row["size"]) for row in rows]),
        _line("network input", ["{}x{}".format(*row["canvas"]) for row in rows]),
        _line("images in a call", [row["batch"] for row in rows]),
        _line("instances found", [sum(row["instances"]) for row in rows]),
        "",
        f"ms of a call, {rows[0]['clocks_ms']['engine']['count']} calls",
    ]
    for clock in rows[0]["clocks_ms"]:
        for q in ("p50", "p90", "p99"):
            name = _NAMES.get(clock, clock) if q == "p50" else ""
            values = [_ms(row["clocks_ms"][clock][q]) for row in rows]
            lines.append(_line(f"  {name:20}{q}", values))
        rates = [_ms(row["images_per_second"][clock]) for row in rows]
        lines.append(_line(f"  {'':16}images/s", rates))
    return [*lines, "", *_stages(rows)]


def _stages(rows: Sequence[Row]) -> list[str]:
    lines = ["ms of its stages, p50"]
    for stage in rows[0]["stages_ms"]:
        lines.append(_line(f"  {stage}", [_ms(row["stages_ms"][stage]) for row in rows]))
    if rows[0]["convolutions_of_end_to_end"] is None:
        return lines
    shares = [row["convolutions_of_end_to_end"] for row in rows]
    return [
        *lines,
        *([] if "network" in rows[0]["stages_ms"] else [_OF_NETWORK]),
        "",
        _line("convolutions, ms", [_ms(share["ms"]) for share in shares]),
        _line(
            "all else of end to end", [f"{100 * share['outside_share']:.1f} %" for share in shares]
        ),
    ]


def _accuracy(result: Mapping[str, Any]) -> list[str]:
    names = list(result["mask"])
    lines = [
        f"accuracy on {result['images']} images of {result['annotations']}",
        " " * 6 + "".join(f"{name:>6}" for name in names),
    ]
    for kind in ("box", "mask"):
        values = (result[kind][name] for name in names)
        cells = ("-" if value is None else f"{value:.1f}" for value in values)
        lines.append(f"{kind:6}" + "".join(f"{cell:>6}" for cell in cells))
    return lines


def _line(name: str, cells: Sequence[object]) -> str:
    return f"{name:{_LABEL}}" + "".join(f"{cell!s:>12}" for cell in cells)


def _ms(value: float) -> str:
    """Three significant digits, but all before the point."""
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}"
