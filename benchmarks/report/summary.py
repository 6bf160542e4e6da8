"""The measured results in one short table, from the files in results."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.tables import PACKAGES, markdown, milliseconds, size

RESULTS = Path(__file__).parents[1] / "results"
Result = Mapping[str, Any]


def measured(results: Path = RESULTS) -> str:
    """Ours and what stands beside it, one row for each subject, and the machine."""
    whole, precisions, instances = (
        _read(results / "whole_image" / f"{name}.json")
        for name in ("whole_image", "precisions", "instances")
    )
    files = ("paste", "mask_heads", "panoptic_merge")
    paste, heads, merge = (_read(results / f"{name}.json") for name in files)
    rows = [
        *(_whole_image(case) for case in whole["results"] if _in_onnxruntime(case)),
        *_precisions(precisions["results"][-1]),
        _operation(paste),
        _operation(heads["results"][-1]),
        _operation(merge["results"][0]),
        _instances(instances["results"][0]),
    ]
    heads_of_table = ["what", "ours, ms", "beside", "its ms", "ratio"]
    sources = (whole, precisions, instances, paste, heads, merge)
    return (
        f"{markdown(heads_of_table, rows)}\n\n"
        f"{_machine(source['environment'] for source in sources)} Medians of interleaved runs on "
        f"{whole['results'][0]['threads']} threads; synthetic weights, 100 instances in an image."
    )


def _whole_image(case: Result) -> list[str]:
    ours, torch = (case["times_ms"][side]["p50"] for side in ("ours", "torch"))
    what = f"whole image, `{case['model']}` {size(case['canvas'])}, fp32 in ONNX Runtime"
    return _row(what, ours, "the same weights in eager torch", torch, digits=2)


def _precisions(case: Result) -> list[list[str]]:
    """The rows of bf16 and int8 in OpenVINO beside float32 in ONNX Runtime."""
    by_name = {
        (row["artefact"]["precision"], row["artefact"]["runtime"]): row["times_ms"]["p50"]
        for row in case["precisions"]
    }
    fp32 = by_name["fp32", "ONNX Runtime"]
    where = f"whole image, `{case['model']}` {size(case['canvas'])}"
    return [
        _row(
            f"{where}, {precision} in OpenVINO",
            by_name[precision, "OpenVINO"],
            "our fp32 in ONNX Runtime",
            fp32,
            digits=2,
        )
        for precision in ("bf16", "int8")
    ]


def _operation(case: Result) -> list[str]:
    ours, theirs = (summary["p50"] for summary in case["times_ms"].values())
    return _row(case["what"], ours, case["against"], theirs, digits=1)


def _instances(case: Result) -> list[str]:
    """The row of an image with 100 instances beside one with a single instance."""
    by_count = {row["instances"]: row["times_ms"]["p50"] for row in case["curve"]}
    what = f"100 instances, `{case['model']}` {size(case['canvas'])}"
    row = _row(what, by_count[100], "1 instance", by_count[1], digits=2)
    return [*row[:-1], f"{100 * case['cost_of_100_over_1']:+.1f} %"]


def _row(what: str, ours: float, beside: str, theirs: float, *, digits: int) -> list[str]:
    ratio = f"{theirs / ours:.{digits}f}x"
    return [what, *milliseconds(ours), beside, *milliseconds(theirs), ratio]


def _in_onnxruntime(case: Result) -> bool:
    return case["artefact"]["runtime"] == "ONNX Runtime"


def _machine(environments: Iterable[Result]) -> str:
    """CPU and package versions; several of one kind if the files differ."""
    environments = list(environments)
    machines = dict.fromkeys(f"{e['cpu']}, {e['cores']} cores" for e in environments)
    versions = []
    for name in PACKAGES:
        found = dict.fromkeys(e["packages"][name] for e in environments if name in e["packages"])
        versions += [f"{name} {' and '.join(found)}"] if found else []
    return f"{' and '.join(machines)}; {', '.join(versions)}."


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
