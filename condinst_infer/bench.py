"""Timing that can be compared: interleaved runs, percentiles, and where they were taken."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from condinst_infer.output import replacing

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Milliseconds of each function, `repeats` values each.

    The functions take turns, so that a machine that slows down slows all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            elapsed_ms = (time.perf_counter() - start) * 1000
            if turn >= warmup:
                times[name].append(elapsed_ms)
    return times


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    """Count, mean, extremes and p50, p90, p99 of `times_ms`, which must not be empty.

    A percentile is an observed value: the smallest that at least so many percent do not exceed.
    """
    ordered = sorted(times_ms)
    percentiles = {
        f"p{q}": ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in (50, 90, 99)
    }
    return {
        "count": len(ordered),
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        **percentiles,
        "max": ordered[-1],
    }


def environment() -> dict[str, Any]:
    """The machine and the software a measurement was taken on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
    }


def usable_cores() -> int:
    """Cores this process may use, which a container or taskset makes fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[str]:
    """Name, driver, memory and compute capability of each GPU, as nvidia-smi tells them."""
    query = "--query-gpu=name,driver_version,memory.total,compute_cap"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def write_result(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write `result` as JSON; the file is there whole or not at all."""
    with replacing(Path(path)) as part:
        part.write_text(json.dumps(result, indent=2) + "\n")


def _cpu_model() -> str:
    """The processor's name; `platform` alone gives the architecture on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this source tree, with "+" where files differ from it; None outside git."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")
