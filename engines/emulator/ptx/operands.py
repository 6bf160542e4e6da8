"""Operands of instructions as functions from threads to values."""

import re
from collections.abc import Callable

import numpy as np

from engines.emulator.ptx.parse import NUMPY_TYPES, SIZES, Fault, Kernel

Lanes = np.ndarray  # numbers of threads in the block, rising
Read = Callable[[Lanes], np.ndarray]
Write = Callable[[Lanes, np.ndarray], None]

_SPECIAL = re.compile(r"%(ctaid|nctaid|ntid)\.([xyz])")
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")


class Operands:
    """Registers of a block and what else an operand may name.

    Args:
        random: fills the registers, which nobody has written.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        threads: int,
        random: np.random.Generator,
    ) -> None:
        self._kernel, self._grid = kernel, grid
        self._threads = np.arange(threads, dtype=np.uint32)
        self.block: tuple[int, int, int] = (0, 0, 0)  # %ctaid
        self.registers: dict[str, np.ndarray] = {}
        for name, kind in kernel.registers.items():
            if kind == "pred":
                self.registers[name] = np.zeros(threads, bool)
            elif kind == "f32":
                self.registers[name] = np.full(threads, np.nan, np.float32)
            else:
                garbage = random.integers(0, 1 << 16, threads)
                self.registers[name] = garbage.astype(NUMPY_TYPES[kind])

    def source(self, operand: str, kind: str) -> Read:
        """Read a register, a special register, an address or a constant as the PTX type `kind`."""
        dtype = NUMPY_TYPES[kind]
        if operand in self.registers:
            return self._register(operand, kind)
        if operand.startswith("%"):
            return self._special(operand, dtype)
        if operand in self._kernel.shared:
            value = dtype(self._kernel.shared[operand])
        else:
            value = _constant(operand, kind)
        return lambda lanes: np.full(len(lanes), value)

    def target(self, operand: str, kind: str) -> Write:
        """Write a register from values of the PTX type `kind`."""
        register, dtype = self.registers[operand], np.dtype(NUMPY_TYPES[kind])
        if register.itemsize == dtype.itemsize and register.dtype != np.bool_:
            view = register.view(dtype)

            def write(lanes: Lanes, values: np.ndarray) -> None:
                view[lanes] = values

            return write

        def extend(lanes: Lanes, values: np.ndarray) -> None:  # by sign or zeros
            register[lanes] = values.astype(dtype).astype(register.dtype)

        return extend

    def address(self, operand: str) -> Read:
        """The addresses that "[%rd1+4]" stands for."""
        match = _ADDRESS.match(operand)
        if match is None:
            raise Fault(f"unknown address: {operand}")
        offset = int(match[2] or "0", 0)
        if match[1] in self.registers:
            register = self.registers[match[1]]
            return lambda lanes: register[lanes].astype(np.int64) + offset
        first = self._kernel.shared[match[1]] + offset
        return lambda lanes: np.full(len(lanes), first, np.int64)

    def _register(self, operand: str, kind: str) -> Read:
        register, dtype = self.registers[operand], np.dtype(NUMPY_TYPES[kind])
        if register.dtype == dtype:
            return lambda lanes: register[lanes]
        if register.itemsize == dtype.itemsize:
            view = register.view(dtype)
            return lambda lanes: view[lanes]
        return lambda lanes: register[lanes].astype(dtype)

    def _special(self, operand: str, dtype: type) -> Read:
        if operand == "%tid.x":
            return lambda lanes: self._threads[lanes].astype(dtype)
        if operand in ("%tid.y", "%tid.z"):
            return lambda lanes: np.zeros(len(lanes), dtype)
        match = _SPECIAL.fullmatch(operand)
        if match is None:
            raise Fault(f"unknown register: {operand}")
        axis = "xyz".index(match[2])
        if match[1] == "ctaid":
            return lambda lanes: np.full(len(lanes), self.block[axis], dtype)
        sizes = self._grid if match[1] == "nctaid" else (len(self._threads), 1, 1)
        return lambda lanes: np.full(len(lanes), sizes[axis], dtype)


def _constant(text: str, kind: str) -> np.generic:
    """The value of "0f3F800000", "-1" or "0x10"."""
    dtype = NUMPY_TYPES[kind]
    if text.startswith("0f"):
        return dtype(np.array(int(text[2:], 16), np.uint32).view(np.float32)[()])
    value = int(text, 0)
    if not np.issubdtype(dtype, np.integer):
        return dtype(value)
    bits = 8 * SIZES[kind]
    value &= (1 << bits) - 1
    if np.issubdtype(dtype, np.signedinteger) and value >> (bits - 1):
        value -= 1 << bits
    return dtype(value)
