"""Plots for docs/benchmarks.md from the result files: latency by instances, time by stage.

    python -m benchmarks.report.plots

Called by docs.generate. The first reads results/whole_image/instances.json, the second
every `condinst bench MODEL -o benchmarks/results/bench/NAME.json`. Equal results give equal files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "results"
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
LEFT_OUT = "RLE"  # of the stages: not part of a call
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "condinst", "svg.fonttype": "none", "font.size": 9}
COLOURS = matplotlib.color_sequences["tab20"]


def instances(result: Mapping[str, Any]) -> Figure:
    """Latency against the number of instances, a line for each model."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for case in result["results"]:
        counts = [row["instances"] for row in case["curve"]]
        times = [row["times_ms"]["p50"] for row in case["curve"]]
        rows, columns = case["canvas"]
        axes.plot(counts, times, "o-", label=f"{case['model']}, {rows}x{columns}")
    axes.set_xscale("symlog", linthresh=1)
    ticks = sorted({row["instances"] for case in result["results"] for row in case["curve"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("instances in the image")
    axes.set_ylabel("frame to native masks, ms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def stages(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Shares of the time of a call by stage, a bar for each row of each `condinst bench`."""
    bars = {}
    for result in results:
        model = result["model"]
        for row in result["rows"]:
            kept = {name: ms for name, ms in row["stages_ms"].items() if name != LEFT_OUT}
            rows, columns = row["size"]
            what = f"{model['name']}, {model['precision']} in {model['runtime']}"
            label = f"{what}\n{rows}x{columns}, {sum(row['instances'])} instances: "
            bars[f"{label}{sum(kept.values()):.0f} ms"] = kept
    names = list(dict.fromkeys(name for bar in bars.values() for name in bar))
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(names, COLOURS, strict=False):
        totals = [sum(bar.values()) for bar in bars.values()]
        widths = [
            100 * bar.get(name, 0.0) / total
            for bar, total in zip(bars.values(), totals, strict=True)
        ]
        starts = [
            100 * sum(bar.get(before, 0.0) for before in names[: names.index(name)]) / total
            for bar, total in zip(bars.values(), totals, strict=True)
        ]
        axes.barh(list(bars), widths, left=starts, height=0.6, label=name, color=colour)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time from a frame to native masks")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def write(results: Path = RESULTS, pictures: Path = PICTURES) -> None:
    """Write a plot to `pictures` for each kind of result that there is."""
    figures = {}
    with matplotlib.rc_context(SETTINGS):
        curve = results / "whole_image" / "instances.json"
        if curve.exists():
            figures["instances"] = instances(json.loads(curve.read_text()))
        files = sorted((results / "bench").glob("*.json"))
        if files:
            figures["stages"] = stages([json.loads(path.read_text()) for path in files])
        for name, figure in figures.items():
            path = pictures / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    write()
