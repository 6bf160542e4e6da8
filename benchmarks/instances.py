"""What instances cost: exports for 1 to 500 of them on a full scene, and images of several sizes.

    python -m benchmarks.instances

Inside the time: from a BGR frame in memory to `Instances`: boxes, scores, labels and native-size
masks, cut out. ONNX Runtime, float32; weights are made up, so that every slot is full (none is in
the row of 0, an export for 100 with nothing above the threshold). Needs the `export` extra.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks import harness, synthetic_models
from benchmarks.pipelines import Ours
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.system import timing

COUNTS = (0, 1, 10, 50, 100, 500)
SIZES = ((480, 640), (1080, 1920), (2160, 3840))


def curve(
    name: str,
    folder: Path,
    *,
    repeats: int,
    threads: int,
    counts: Sequence[int] = COUNTS,
    **changes: Any,
) -> dict[str, Any]:
    """Times by instances, and what 100 cost over 1."""
    frame = synthetic_models.frame()
    rows, functions, canvas = [], {}, (0, 0)
    with ExitStack() as stack:
        for count in counts:
            path = synthetic_models.onnx_file(name, folder, count, **changes)
            ours = stack.enter_context(closing(Ours(path, frame, threads=threads)))
            canvas = ours.canvas
            found, slots = len(ours.end_to_end()), ours.config.detect.max_detections
            rows.append({"instances": found, "slots": slots})
            functions[str(count)] = ours.end_to_end
        # one runtime on all sides: each comes after another one of the same kind
        times = timing.time_interleaved(functions, repeats=repeats, warmup=1)
    for row, values in zip(rows, times.values(), strict=True):
        row["times_ms"] = timing.summary(values)
    one, hundred = (timing.summary(times[str(count)])["p50"] for count in (1, 100))
    return {
        "model": name,
        "canvas": list(canvas),
        "image": list(synthetic_models.FRAME),
        "artefact": {"runtime": "ONNX Runtime", "precision": "fp32"},
        "threads": threads,
        "curve": rows,
        "cost_of_100_over_1": hundred / one - 1,
    }


def sizes(
    name: str,
    folder: Path,
    *,
    repeats: int,
    threads: int,
    images: Sequence[tuple[int, int]] = SIZES,
    **changes: Any,
) -> dict[str, Any]:
    """Times by size of the image, whole and of the network."""
    path = synthetic_models.onnx_file(name, folder, **changes)
    rows, functions = [], {}
    with ExitStack() as stack:
        for size in images:
            ours = Ours(path, synthetic_models.frame(size), threads=threads)
            stack.enter_context(closing(ours))
            count = len(ours.end_to_end())
            rows.append({"image": list(size), "canvas": list(ours.canvas), "instances": count})
            functions |= {f"whole {size}": ours.end_to_end, f"engine {size}": ours.engine}
        times = timing.time_interleaved(functions, repeats=repeats, warmup=1)
    for row, size in zip(rows, images, strict=True):
        row["times_ms"] = timing.summary(times[f"whole {size}"])
        row["engine_ms"] = timing.summary(times[f"engine {size}"])
    return {"model": name, "threads": threads, "sizes": rows}


def main() -> None:
    """Measure, print one line per model and size, write the result."""
    options = harness.parser(__doc__, "instances.json", repeats=15).parse_args()
    settings = {"repeats": options.repeats, "threads": options.threads}
    results = []
    with synthetic_models.folder(options.keep) as folder:
        for name in options.models:
            result = curve(name, folder, **settings)
            results.append(result)
            times = [f"{r['instances']}: {r['times_ms']['p50']:.0f}" for r in result["curve"]]
            cost = f"100 cost {result['cost_of_100_over_1']:.1%} over 1"
            print(f"{name}: {', '.join(times)} ms; {cost}", flush=True)
        by_size = sizes(options.models[0], folder, **settings)
    for row in by_size["sizes"]:
        whole, engine = (row[name]["p50"] for name in ("times_ms", "engine_ms"))
        height, width = row["image"]
        print(f"{height}x{width}: {whole:.0f} ms, the network alone {engine:.0f} ms")
    found = {"results": results, "by_size": by_size, "environment": environment()}
    write_result(options.output, found)


if __name__ == "__main__":
    main()
