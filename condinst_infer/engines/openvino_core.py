"""What OpenVINO has one of in a process, and what it says of the CPU."""

import functools
from typing import Any

from condinst_infer.errors import require

PRECISIONS = ("fp32", "bf16", "int8")


@functools.cache
def core() -> Any:
    """OpenVINO's Core, one for the life of the process.

    A Core gives the thread that first uses it another stack for signals, and takes that away when
    it ends. Of two that end in the wrong order the second leaves the thread with a stack that is
    gone, and the next signal that Python handles, such as Ctrl-C, kills the process.
    """
    openvino = require("openvino", "openvino")
    # The first call fills a table and may let another thread run meanwhile. If that one comes to
    # the same call, each waits for the other forever. So it happens here, before any worker runs.
    openvino.Type.f32.to_dtype()
    return openvino.Core()


def cpu_precisions() -> list[str]:
    """Which of `PRECISIONS` this CPU computes in."""
    found = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in PRECISIONS if name.upper() in found]
