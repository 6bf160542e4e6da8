"""What mask NMS costs beside box NMS: the same weights and frame, masks of 100 to 512 candidates.

    python -m benchmarks.mask_nms

Inside the time of `whole`: from a BGR frame in memory to `Instances`; of `engine`: the network
alone, which with mask NMS has no box branch. ONNX Runtime, float32; made-up weights under which
every slot is full and there are more candidates than any limit. Needs the `export` extra.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks import harness, synthetic_models
from benchmarks.pipelines import Ours
from condinst_infer.config.validation import CHOICES
from condinst_infer.system import timing

CANDIDATES = (100, 300, 512)


def compare(
    name: str,
    folder: Path,
    *,
    repeats: int,
    threads: int,
    candidates: Sequence[int] = CANDIDATES,
    **changes: Any,
) -> dict[str, Any]:
    """Times of box NMS and of greedy mask NMS by candidates, with the ratio to box NMS.

    The other kinds are measured for the middle one of `candidates`.
    """
    kinds = [("greedy", count) for count in candidates]
    kinds += [(kind, candidates[len(candidates) // 2]) for kind in CHOICES["mask_nms"][1:]]
    variants: dict[str, dict[str, Any]] = {"box": {}} | {
        f"{kind} {count}": {"nms": "mask", "mask_nms": kind, "mask_nms_candidates": count}
        for kind, count in kinds
    }
    rows, functions, canvas = {}, {}, (0, 0)
    with ExitStack() as stack:
        for label, fields in variants.items():
            into = folder / label.replace(" ", "_")
            into.mkdir(exist_ok=True)
            path = synthetic_models.onnx_file(name, into, **changes, **fields)
            ours = stack.enter_context(
                closing(Ours(path, synthetic_models.frame(), threads=threads))
            )
            canvas = ours.canvas
            rows[label] = {**fields, "instances": len(ours.end_to_end())}
            functions |= {f"whole {label}": ours.end_to_end, f"engine {label}": ours.engine}
        times = timing.time_interleaved(functions, repeats=repeats, warmup=1)
    for label, row in rows.items():
        row["times_ms"] = timing.summary(times[f"whole {label}"])
        row["engine_ms"] = timing.summary(times[f"engine {label}"])
        row["over_box"] = row["times_ms"]["p50"] / rows["box"]["times_ms"]["p50"]
    return {
        "model": name,
        "canvas": list(canvas),
        "image": list(synthetic_models.FRAME),
        "artefact": {"runtime": "ONNX Runtime", "precision": "fp32"},
        "threads": threads,
        "rows": rows,
    }


def describe(result: dict[str, Any]) -> Iterator[str]:
    """One line per variant."""
    for label, row in result["rows"].items():
        whole, engine = (row[clock]["p50"] for clock in ("times_ms", "engine_ms"))
        yield (
            f"{result['model']}, {label}: {whole:.0f} ms ({row['over_box']:.2f} x box), the "
            f"network alone {engine:.0f} ms, {row['instances']} instances"
        )


if __name__ == "__main__":
    harness.main(__doc__, "mask_nms.json", compare, describe, repeats=10)
