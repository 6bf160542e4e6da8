"""The table of the programs in export/examples, from results/examples."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown

RESULT = Path(__file__).parents[1] / "results" / "examples" / "nuclei.json"


def parts(path: Path = RESULT) -> dict[str, str]:
    """The table by its name, with what the C++ program takes beside the pipeline."""
    result = json.loads(path.read_text())
    heads = ["example", "instances", "boxes, pixels", "scores", "mask pixels that differ"]
    table = markdown(heads, [_row(row) for row in result["rows"]])
    times = result["times_ms"]
    ratios = [times[name] / times["python"] for name in ("cpp", "cpp_detector")]
    sentence = (
        f"In one run on {result['environment']['cpu']}, turn by turn, `openvino_cpp` took "
        f"{ratios[0]:.2f} of the time of the package's pipeline with OpenVINO with the file in "
        f"standard operators, and {ratios[1]:.2f} with the detector cut: from pixels to masks, "
        f"{result['rows'][0]['expected']} instances."
    )
    return {"examples": f"{table}\n\n{sentence}"}


def _row(row: dict[str, Any]) -> list[str]:
    count = f"{row['instances']} of {row['expected']}"
    if "pixels" not in row:
        return [row["example"], count, "", "", "other instances"]
    far = [f"{row[name]:.1g}" for name in ("boxes", "scores")]
    return [row["example"], count, *far, f"{row['pixels']} of {row['of_pixels']}"]
