"""Processor cores and GPUs of this machine."""

import os
import subprocess


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
