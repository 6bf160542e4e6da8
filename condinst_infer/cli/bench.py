"""`condinst bench`: latency by stage, memory and accuracy of a model file."""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condinst_infer.cli.options import (
    DeviceOptions,
    Verb,
    add_device,
    add_json,
    add_model,
    add_threads,
    positive,
    size,
    table_of_numbers,
)
from condinst_infer.errors import ConfigError
from condinst_infer.profiling.benchmark import LabelledImages, benchmark
from condinst_infer.system.outputs import text_file
from condinst_infer.system.progress import progress_bar
from condinst_infer.system.timing import REPEATS, SIZES, WARMUP

_COLUMNS = 4  # side by side
_SHARES = "  (parts of the network: shares of its time, from a profile)"
_NAMES = {"end_to_end": "end to end", "end_to_end_rle": "end to end and RLE"}


@dataclass(frozen=True, kw_only=True)
class BenchOptions(DeviceOptions):
    """Options of `condinst bench`; ConfigError if two of them need each other."""

    model: Path
    image: list[Path]
    size: Sequence[tuple[int, int]]
    batch: list[int]
    repeats: int
    warmup: int
    annotations: Path | None
    images: Path | None
    limit: int | None
    output: Path | None
    json: bool

    def __post_init__(self) -> None:
        if (self.annotations is None) != (self.images is None):
            raise ConfigError("--annotations and --images belong together; give both or none.")


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `BenchOptions`."""
    add_model(parser)
    _add_frames(parser)
    add_device(parser)
    add_threads(parser)
    parser.add_argument(
        "--repeats",
        type=positive,
        default=REPEATS,
        metavar="N",
        help="timed calls of each scope (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=positive,
        default=WARMUP,
        metavar="N",
        help="untimed calls of each scope before these (default: %(default)s)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="also measure the accuracy on these annotations, a COCO instances file",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of --annotations"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="use only the first N images of --annotations (default: all)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="also write the result as JSON"
    )
    add_json(parser)


def _add_frames(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to measure with (default: the bundled micrograph)",
    )
    parser.add_argument(
        "--size",
        type=size,
        nargs="+",
        default=SIZES,
        metavar="HxW",
        help="sizes to resize each image to, outside the time (default: "
        + " ".join(f"{height}x{width}" for height, width in SIZES)
        + ")",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        nargs="+",
        default=[],
        metavar="N",
        help="images per call (default: 1, or the fixed batch of the file)",
    )


def run(options: BenchOptions) -> int:
    """Measure, print, and write the result."""
    labelled = None
    if options.annotations is not None and options.images is not None:
        labelled = LabelledImages(options.annotations, options.images, options.limit)
    with text_file(options.output) if options.output else nullcontext() as file:
        with progress_bar(100, "%", description="measuring") as bar:
            result = benchmark(
                options.model,
                **options.for_load(),
                images=options.image,
                sizes=options.size,
                batches=options.batch,
                repeats=options.repeats,
                warmup=options.warmup,
                labelled=labelled,
                progress=lambda share: bar.update(int(100 * share) - bar.n),
            )
        if file is not None:
            file.write(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if options.json else text(result))
    return 0


def text(result: Mapping[str, Any]) -> str:
    """The result as lines for people."""
    rows = result["rows"]
    parts = ["\n".join(_heading(result))]
    parts += [_table(rows[first : first + _COLUMNS]) for first in range(0, len(rows), _COLUMNS)]
    if result["accuracy"] is not None:
        parts.append(_accuracy(result["accuracy"]))
    return "\n\n".join(parts)


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
        "gpu": ", ".join(machine["gpus"]) if model["device"].startswith("cuda") else "",
        "load": f"{result['load_ms']:.0f} ms with the runtime's import; first call "
        f"{result['first_call_ms']:.0f} ms",
        "memory": f"{memory['peak_mib']:.0f} MiB at most{of_it} ({memory['how']})",
    }
    return [f"{name:9}{value}" for name, value in values.items() if value]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
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
    return "\n".join([*lines, "", *_stages(rows)])


def _stages(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["ms of its stages, p50"]
    for stage in rows[0]["stages_ms"]:
        lines.append(_line(f"  {stage}", [_ms(row["stages_ms"][stage]) for row in rows]))
    if rows[0]["convolutions_of_end_to_end"] is None:
        return lines
    shares = [row["convolutions_of_end_to_end"] for row in rows]
    rest = [f"{100 * share['outside_share']:.1f} %" for share in shares]
    return [
        *lines,
        *([] if "network" in rows[0]["stages_ms"] else [_SHARES]),
        "",
        _line("convolutions, ms", [_ms(share["ms"]) for share in shares]),
        _line("all else of end to end", rest),
    ]


def _accuracy(result: Mapping[str, Any]) -> str:
    rows = [{"": kind, **result[kind]} for kind in ("box", "mask")]
    title = f"accuracy on {result['images']} images of {result['annotations']}"
    return f"{title}\n{table_of_numbers(rows)}"


def _line(name: str, cells: Sequence[object]) -> str:
    return f"{name:26}" + "".join(f"{cell!s:>12}" for cell in cells)


def _ms(value: float) -> str:
    """Three significant digits, but all before the point."""
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}"


VERB = Verb(
    "condinst bench model.onnx --image street.jpg --threads 2 -o times.json\n\n"
    "Every time is taken on this machine, so keep it idle. The JSON says what each scope counts.",
    add_options,
    BenchOptions,
    run,
    inputs=("model", "image", "annotations", "images"),
    outputs={"output": "text"},
)
