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
    """Results of `python -m benchmarks.gpu.pipelines` on each card."""
    parts = []
    for path in sorted((results / "gpu").glob("*.json")):
        data = json.loads(path.read_text())
        environment = data["environment"]
        failed = sum(not check["ok"] for check in data["checks"])
        parts.append(
            f"{data['device']}, driver for CUDA {data['driver_cuda']}, torch "
            f"{environment['packages']['torch']}: {len(data['checks'])} checks, {failed} failed.\n"
        )
        rows = []
        for case in data["results"]:
            (_, ours), *others = case["times_ms"].items()
            beside, its = ("", "")
            if others:
                beside, its = others[0][0], f"{others[0][1]['p50'] * 1000:.0f}"
            rate = f"{case['gb_per_s']:.0f}" if "gb_per_s" in case else ""
            rows.append([case["what"], f"{ours['p50'] * 1000:.0f}", beside, its, rate])
        parts.append(markdown(["what", "ours, us", "beside", "its us", "GB/s"], rows))
    return "\n".join(parts) or "Times on a GPU: none yet."


def _operation_row(case: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    times = {name: summary["p50"] for name, summary in case["times_ms"].items()}
    ours, theirs = times.values()
    machine = f"{environment['cpu']}, torch {environment['packages']['torch']}"
    cells = [case["what"], f"{ours:.1f}", case["against"], f"{theirs:.1f}"]
    return [*cells, f"{theirs / ours:.1f}x", machine]
