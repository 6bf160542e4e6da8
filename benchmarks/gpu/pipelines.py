"""Checks and times of everything on a GPU that needs no TensorRT.

    python -m benchmarks.gpu.pipelines PART [--small] --output FILE
    python -m benchmarks.gpu.pipelines --merge FILE... --output FOLDER

PART is "checks" or "times" of the kernels, as in `condinst doctor --gpu-check`, or "pipelines":
whole pipelines with a PyTorch detector, which needs PyTorch with CUDA, their results compared, then
their times. Each group runs in a process of its own. quarter_hour.sh runs the three and merges
their files into CARD.json, which belongs in benchmarks/results/gpu. Exit status 1 if one fails.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from condinst_infer.errors import CondInstError
from condinst_infer.profiling.environment import write_result
from condinst_infer.profiling.gpu.groups import CHECKS, TIMES
from condinst_infer.profiling.gpu.run import run_groups

PARTS = {  # groups, and the seconds that each may take
    "checks": (CHECKS, 25.0),
    "times": (TIMES, 30.0),
    "pipelines": ({"pipelines": "benchmarks.gpu.pipeline_times:pipeline_times"}, 85.0),
}


def main() -> int:
    """Check or measure, or merge what was found; 1 if anything failed."""
    parser = argparse.ArgumentParser(description="check and time everything that needs no TensorRT")
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--small", action="store_true", help="tiny sizes: times mean nothing")
    parser.add_argument("--merge", type=Path, nargs="+", help="files to write as one, CARD.json")
    parser.add_argument("--limit-scale", type=float, default=1, help="factor of the time limits")
    parser.add_argument("--output", type=Path, required=True, help="file; folder with --merge")
    options = parser.parse_args()
    if (options.part is None) == (options.merge is None):
        parser.error("name a part, or files to merge")
    if options.merge:
        return merge(options.merge, options.output)
    groups, limit_s = PARTS[options.part]
    limit_s *= options.limit_scale
    try:
        report = run_groups(groups, options.output, small=options.small, limit_s=limit_s)
    except CondInstError as error:  # no GPU
        print(error, file=sys.stderr)
        return 1
    failed = len(report.failures())
    print(f"{failed} failed" if failed else "all right")
    return report.status


def merge(paths: Sequence[Path], folder: Path) -> int:
    """Write the results of several runs on one card as `folder`/CARD.json; 1 if one is missing."""
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    found = [data for data in found if data["device"]]
    if not found:
        print("no run has reached a GPU", file=sys.stderr)
        return 1
    whole = dict(found[0])
    for data in found[1:]:
        for name in ("checks", "results", "errors"):
            whole[name] = whole[name] + data[name]
        whole["groups"] = whole["groups"] | data["groups"]
        whole["complete"] = whole["complete"] and data["complete"]
    whole["complete"] = whole["complete"] and len(found) == len(paths)
    card = re.sub(r"\W+", "-", whole["device"]["name"].lower()).strip("-")
    write_result(folder / f"{card}.json", whole)
    print(f"-> {card}.json")
    return int(not whole["complete"])


if __name__ == "__main__":
    sys.exit(main())
