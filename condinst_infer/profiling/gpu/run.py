"""Checks and times of the kernels on a GPU that need no TensorRT.

    python -m condinst_infer.profiling.gpu.run

Every kernel against torch at many sizes, then times of kernels. Needs PyTorch with CUDA, numpy,
OpenCV, Pillow and cuda-bindings; some minutes. In a clone of the repository without a GPU the same
code runs on the CPU at tiny sizes: the times mean nothing then. Exit status 1 if a check fails.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from condinst_infer.cuda.driver import Device, Stream
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.profiling.gpu.checks import Check, instance_checks
from condinst_infer.profiling.gpu.panoptic_checks import panoptic_checks
from condinst_infer.profiling.gpu.times import (
    time_mask_heads,
    time_merge,
    time_nms,
    time_paste,
    time_preprocess,
)

Measure = Callable[..., Iterable[dict[str, Any]]]  # (device, small=)


def checks(stream: Stream, *, small: bool) -> Iterator[Check]:
    """Check every kernel; `small` sizes for the CPU."""
    yield from instance_checks(stream, small)
    yield from panoptic_checks(stream, small)


def kernel_times(device: Device, *, small: bool) -> list[dict[str, Any]]:
    """Time every kernel; `small` sizes for the CPU."""
    stream = device.stream()
    if small:
        found = [
            time_mask_heads(stream, 2, 9, 11, 1),
            time_nms(stream, 2, 20, 5, 1),
            time_preprocess(stream, (48, 64), (24, 32), 1),
            time_paste(stream, 2, (9, 11), (40, 50), 1),
            time_merge(stream, 2, 4, (9, 11), (40, 50), 1),
        ]
    else:
        found = [
            time_mask_heads(stream, 100, 64, 88, 50),
            time_mask_heads(stream, 100, 100, 168, 50),
            time_nms(stream, 1, 1000, 100, 50),
            time_nms(stream, 5, 1000, 100, 50),
            time_preprocess(stream, (480, 640), (512, 683), 50),
            time_preprocess(stream, (1080, 1920), (414, 736), 50),
            time_paste(stream, 100, (128, 172), (480, 640), 50),
            time_paste(stream, 100, (104, 184), (1080, 1920), 50),
            time_merge(stream, 100, 54, (104, 184), (1080, 1920), 50),
        ]
    stream.close()
    return found


def main(measures: Sequence[Measure] = (kernel_times,), results: Path | None = None) -> int:
    """Check and measure; print and write both.

    Args:
        measures: give rows of times, each called with the device.
        results: folder of the JSON file CARD.json; None writes only what --output names.

    Returns:
        The exit status: 1 if a check failed.
    """
    parser = argparse.ArgumentParser(description="check and time the CUDA kernels on this GPU")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    small = not torch.cuda.is_available()
    if small:
        _load_emulator()
    device = Device()
    card = re.sub(r"\W+", "-", device.name.lower()).strip("-")
    output = options.output or (None if small or results is None else results / f"{card}.json")
    stream, found = device.stream(), []
    for check in checks(stream, small=small):
        found.append(check)
        if not check.ok:
            print(f"FAILED {check}", flush=True)
    stream.close()
    failed = sum(not check.ok for check in found)
    print(f"{len(found)} checks, {failed} failed", flush=True)
    result: dict[str, Any] = {
        "device": device.name,
        "compute_capability": device.compute_capability,
        "driver_cuda": device.driver_version,
        "torch_cuda": torch.version.cuda,
        "environment": environment(),
        "checks": [check._asdict() | {"ok": check.ok} for check in found],
        "results": [],
    }
    if output:
        write_result(output, result)  # whatever happens to the times
    for measured in chain.from_iterable(measure(device, small=small) for measure in measures):
        times = measured["times_ms"]
        beside = ", ".join(f"{name} {t['p50'] * 1000:.0f}" for name, t in times.items())
        print(f"{measured['what']}: {beside} us", flush=True)
        result["results"].append(measured)
    if output:
        write_result(output, result)
        print(f"-> {output}")
    return 1 if failed else 0


def _load_emulator() -> None:
    """Put the kernels on the CPU in the place of NVIDIA's driver."""
    try:
        from engines import emulator
    except ModuleNotFoundError:
        sys.exit(
            "PyTorch sees no NVIDIA GPU here, and only a clone of the repository emulates one."
        )
    print("no GPU: tiny sizes on the CPU, times mean nothing", file=sys.stderr)
    emulator.load()


if __name__ == "__main__":
    sys.exit(main())
