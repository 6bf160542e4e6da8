"""Write what the kernels have to put out, by their twins, into the package.

    python -m engines.expectations

`condinst doctor --gpu-check` compares with it where there is no PyTorch. A test computes it again.
"""

from typing import Any

import numpy as np

from condinst_infer.profiling.gpu.cases import Arrays, KernelCase
from condinst_infer.profiling.gpu.checks import STORED, checksum, sampled
from condinst_infer.profiling.gpu.groups import CHECKS, cases_of
from engines.compile_ptx import PTX

FILE = PTX.parent / STORED


def expectations(kernel: str, case: KernelCase) -> Arrays:
    """The arrays to store for one case, by their names in the file."""
    inputs = case.inputs()
    values = {name: _compact(sampled(v)) for name, v in case.expected(inputs).items()}
    values["inputs"] = np.array(checksum(inputs), np.uint32)
    return {f"{kernel}: {case.name}: {name}": value for name, value in values.items()}


def _compact(values: np.ndarray) -> np.ndarray:
    """Float32 as float16 where that holds all of them."""
    half = values.astype(np.float16) if values.dtype == np.float32 else values
    return half if (half == values).all() else values


def main() -> None:
    """Write the file."""
    stored: dict[str, Any] = {}
    for kernel in CHECKS:
        cases = {case.name: case for case in cases_of(kernel) if case.stored}
        for case in cases.values():
            stored |= expectations(kernel, case)
    np.savez_compressed(FILE, **stored)
    print(f"{FILE.name}: {len(stored)} arrays, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
