"""A stand-in for `Stream` of `condinst_infer.cuda` that interprets the shipped PTX."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from condinst_infer.cuda import kernels
from engines.emulator.ptx import Buffer, Module, Problem


@cache
def shipped(source: str) -> Module:
    """The module of the .ptx file `source`."""
    return Module(kernels.ptx(source))


class PtxStream:
    """Launches kernels in the interpreter, and keeps what is wrong with them.

    Args:
        mode, seed, shift: as in `Module.launch`.
        module: the module of a .ptx file.
    """

    def __init__(
        self,
        *,
        mode: str = "lockstep",
        seed: int = 0,
        shift: int = 0,
        module: Callable[[str], Module] = shipped,
    ) -> None:
        self.problems: Counter[tuple[str, Problem]] = Counter()  # (kernel, problem)
        self.kernels: Counter[str] = Counter()  # launches
        self.instructions: Counter[str] = Counter()  # warp instructions by kernel, in lockstep
        self._settings: dict[str, Any] = {"mode": mode, "seed": seed, "shift": shift}
        self._module = module

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """New memory, not written yet."""
        return Buffer(shape, dtype)

    def array(self, host: np.ndarray) -> Buffer:
        """A copy of `host`."""
        return Buffer.of(host)

    def numpy(self, source: Buffer) -> np.ndarray:
        """A copy of the content, every byte of which has to be written."""
        assert source.written.all(), f"{(~source.written).sum()} bytes of an output aren't written"
        return source.array().copy()

    def launch(
        self, call: kernels.Launch, inputs: Sequence[Buffer], outputs: Sequence[Buffer]
    ) -> None:
        """Run one kernel to its end."""
        args = [*inputs, *(int(scalar) for scalar in call.scalars), *outputs]
        module = self._module(call.source)
        found = module.launch(call.kernel, call.grid, call.block, args, **self._settings)
        self.kernels[call.kernel] += 1
        self.instructions[call.kernel] += sum(found.counts.values())
        for problem, count in found.problems.items():
            self.problems[call.kernel, problem] += count
