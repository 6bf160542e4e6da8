"""The table of runtimes that open an exported file, from results/runtimes."""

import json
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown
from benchmarks.runtimes import FILES, NAMES, RESULT

_HEADS = {"plain": "plain file", "standard": "`--standard-ops`", "static": "and `--size --batch`"}
_ERROR_LENGTH = 110


def parts(path: Path = RESULT) -> dict[str, str]:
    """The table by its name."""
    rows = [
        [NAMES[row["runtime"]], row["version"], *(_cell(row["files"][name]) for name in FILES)]
        for row in json.loads(path.read_text())["rows"]
    ]
    return {"runtimes": markdown(["runtime", "version", *(_HEADS[name] for name in FILES)], rows)}


def _cell(found: dict[str, Any]) -> str:
    """The instances and largest differences, or the reason of a failure."""
    if "error" in found:
        return f"fails: {_end(found['error']).replace('|', '/').rstrip('.')}"
    if "instances" not in found:
        return "builds; not run"
    count = f"{found['matched']} of {found['expected']}"
    if found["instances"] != found["expected"]:
        count += f", {found['instances']} found"
    apart = f"boxes {found['boxes']:.1g} px, masks {found['masks']:.1g}"
    least = f", mask IoU from {found['least_mask_iou']:.3f}" if found["masks"] > 1e-4 else ""
    return f"{count}; {apart}{least}"


def _end(text: str) -> str:
    """The last words of an error, which say most; what comes before them is where it was raised."""
    if len(text) <= _ERROR_LENGTH:
        return text
    return f"... {text[-_ERROR_LENGTH:].partition(' ')[2]}"
