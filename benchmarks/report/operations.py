"""Tables of single operations, on a CPU and on GPUs, from the files in results and results/gpu."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown

RESULTS = Path(__file__).parents[1] / "results"


def parts(results: Path = RESULTS) -> dict[str, str]:
    """The tables by name."""
    return {"results": operation_table(results), "gpu": gpu_tables(results)}


def operation_table(results: Path = RESULTS) -> str:
    """One row per comparison in the result files."""
    rows = []
    for path in sorted(results.glob("*.json")):
        data = json.loads(path.read_text())
        for case in data.get("results", [data]):
            rows.append(_operation_row(case, data["environment"]))
    return markdown(["what", "ours, ms", "beside", "its ms", "ratio", "machine"], rows)


def gpu_tables(results: Path = RESULTS) -> str:
    """Results of `benchmarks/gpu/quarter_hour.sh` on each card."""
    parts = []
    for path in sorted((results / "gpu").glob("*.json")):
        data = json.loads(path.read_text())
        device, packages = data["device"], data["environment"]["packages"]
        failed = sum(not check["ok"] for check in data["checks"])
        torch = f", torch {packages['torch']}" if "torch" in packages else ""
        parts.append(
            f"{device['name']}, driver for CUDA {device['driver_cuda']}{torch}: "
            f"{len(data['checks'])} checks, {failed} failed.\n"
        )
        heads = ["what", "ours, us", "p99, us", "beside, us", "GB/s", "of the roofline"]
        parts.append(markdown(heads, [_gpu_row(row) for row in data["results"]]) + "\n")
    return "\n".join(parts).rstrip() or "Times on a GPU: none yet."


def _gpu_row(row: dict[str, Any]) -> list[str]:
    """The cells of one time; of one that failed, the error."""
    if "error" in row:
        return [row["what"], "failed", "", " ".join(row["error"].replace("|", "/").split()), "", ""]
    (_, ours), *others = row["times_ms"].items()
    beside = [f"{name} {_us(its['p50'])}" for name, its in others]
    beside += [f"{name} failed" for name in row.get("failed", {})]
    if "gb_per_s" not in row:  # a whole pipeline
        return [row["what"], _us(ours["p50"]), _us(ours["p99"]), "; ".join(beside), "", ""]
    share = "unknown"
    if row["roofline"] is not None:
        share = f"{100 * row['roofline']['share']:.0f} %, {row['roofline']['bound']}"
    cells = [row["what"], _us(ours["p50"]), _us(ours["p99"]), "; ".join(beside)]
    return [*cells, f"{row['gb_per_s']:.0f}", share]


def _us(milliseconds: float) -> str:
    """Microseconds, with a digit after the point below 10."""
    microseconds = 1000 * milliseconds
    return f"{microseconds:.1f}" if microseconds < 10 else f"{microseconds:,.0f}"


def _operation_row(case: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    times = {name: summary["p50"] for name, summary in case["times_ms"].items()}
    ours, theirs = times.values()
    machine = f"{environment['cpu']}, torch {environment['packages']['torch']}"
    cells = [case["what"], f"{ours:.1f}", case["against"], f"{theirs:.1f}"]
    return [*cells, f"{theirs / ours:.1f}x", machine]
