"""A whole image in every precision a CPU has: float32, bfloat16 and int8, in both runtimes.

    python -m benchmarks.precisions

Inside the time: from a BGR frame in memory to `Instances`: boxes, scores, labels and native-size
masks, cut out; beside it the network alone. Weights are made up, so that there are 100 instances,
and int8 is calibrated on the frame: what a precision costs in accuracy is measured on a trained
model, by benchmarks.nuclei. Needs the extras `export` and `openvino`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks import harness, synthetic_models
from benchmarks.pipelines import Ours

# (precision, runtime); the first is what the others are compared with
ROWS = (
    ("fp32", "onnxruntime"),
    ("fp32", "openvino"),
    ("bf16", "openvino"),
    ("int8", "onnxruntime"),
    ("int8", "openvino"),
)


def measure(
    name: str, folder: Path, *, repeats: int, threads: int, **changes: Any
) -> dict[str, Any]:
    """One result: times in each precision, whole and of the network, and ratios to the first."""
    frame = synthetic_models.frame()
    files = {"fp32": synthetic_models.onnx_file(name, folder, **changes)}
    files["bf16"] = files["fp32"]  # made when it is loaded
    files["int8"] = synthetic_models.int8_file(name, folder, **changes)
    rows, sides, canvas = [], [], (0, 0)
    with ExitStack() as stack:
        for precision, runtime in ROWS:
            chosen = {"runtime": runtime}
            if runtime == "openvino":
                chosen["precision"] = precision
            ours = Ours(files[precision], frame, threads=threads, **chosen)
            stack.enter_context(closing(ours))
            key = f"{precision}, {runtime}"
            canvas = ours.canvas
            rows.append({"artefact": ours.artefact, "instances": len(ours.end_to_end())})
            sides.append({key: ours.end_to_end, f"{key}, engine": ours.engine})
        times = harness.summaries(sides, repeats=repeats)
    for row, side in zip(rows, sides, strict=True):
        row["times_ms"], row["engine_ms"] = (times[clock] for clock in side)
    first = rows[0]
    for row in rows:
        row["ratio"] = first["times_ms"]["p50"] / row["times_ms"]["p50"]
        row["engine_ratio"] = first["engine_ms"]["p50"] / row["engine_ms"]["p50"]
    return {
        "model": name,
        "canvas": list(canvas),
        "image": list(synthetic_models.FRAME),
        "threads": threads,
        "precisions": rows,
    }


def describe(result: dict[str, Any]) -> Iterator[str]:
    """One line per precision."""
    for row in result["precisions"]:
        what = f"{result['model']}, {row['artefact']['precision']}, {row['artefact']['runtime']}"
        whole, engine = (row[clock]["p50"] for clock in ("times_ms", "engine_ms"))
        times = f"{whole:.0f} ms ({row['ratio']:.2f}x)"
        yield f"{what}: {times}, the network alone {engine:.0f} ms"


if __name__ == "__main__":
    harness.main(__doc__, "precisions.json", measure, describe, repeats=10)
