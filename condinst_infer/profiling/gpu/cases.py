"""A kernel's cases: seeded inputs, a launch, and what it has to put out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.kernels import Launch
from condinst_infer.cuda.stream import Stream

Arrays = dict[str, np.ndarray]
UNDECIDED = " undecided"  # after an output's name: flat places that rounding may decide
_POISON = 0x7F  # in what a kernel has to write: 3.4e38 as float32, NaN as float16
FLOATS = (np.float32, np.float16)


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """One launch and its outputs; whole numbers have to be equal, limits are for floats.

    Args:
        name: says the sizes; cases with the same name have the same inputs and expectations.
        inputs: makes the inputs; they don't depend on the machine.
        run: launches the kernel on them.
        expected: what it has to put out, by `twin`, which is imported in it.
        limit: of the absolute difference, and of the number of wrong pixels.
        small: whether it is for the CPU and compute-sanitizer too.
        stored: whether its expectations are in the package.
        gpu_twin: whether the twin takes too long on a CPU.
    """

    name: str
    inputs: Callable[[], Arrays]
    run: Callable[[Stream, Arrays], Arrays]
    expected: Callable[[Arrays], Arrays]
    twin: str = "torch"
    limit: float = 0
    dtype: Any = None
    small: bool = True
    stored: bool = True
    gpu_twin: bool = False

    @property
    def title(self) -> str:
        """The name, with the type of the inputs where a kernel has two."""
        return self.name if self.dtype is None else f"{self.name}, {np.dtype(self.dtype)}"


Output = np.ndarray | tuple[tuple[int, ...], Any]  # the contents before, or a shape and a dtype


def launched(
    stream: Stream,
    launch: Launch,
    inputs: Iterable[np.ndarray],
    outputs: Sequence[Output],
    offset: int = 0,
) -> list[np.ndarray]:
    """Launch a kernel and return its outputs; those without contents are poisoned before.

    Args:
        offset: bytes of every array's address behind a multiple of 256.
    """
    memory: list[DeviceArray] = []

    def place(shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        memory.append(stream.empty((prod(shape) * np.dtype(dtype).itemsize + offset,), np.uint8))
        return memory[-1].view(shape, dtype, offset)

    def copy(values: np.ndarray) -> DeviceArray:
        array = place(values.shape, values.dtype)
        stream.upload(array, np.ascontiguousarray(values))
        stream.synchronize()  # a copy of the values may go away
        return array

    arrays, results = [copy(values) for values in inputs], []
    for output in outputs:
        if isinstance(output, np.ndarray):
            results.append(copy(output))
        else:
            results.append(place(*output))
            stream.fill(results[-1], _POISON)
    stream.launch(launch, arrays, results)
    found = [stream.numpy(result) for result in results]
    stream.free(*memory)
    return found
