"""Buffers in the memory of the interpreted GPU, and checked accesses to them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engines.emulator.ptx.parse import NUMPY_TYPES, SIZES, Instruction
from engines.emulator.ptx.problems import Watch
from engines.emulator.ptx.races import History

POISON = 0xA5
_FIRST_ADDRESS = 1 << 40
_GAP = 4096  # bytes between buffers, so that an access past the end of one hits none
_ALIGNMENT = 256  # of memory that the driver allocates

_ATOMIC = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "or": np.bitwise_or,
    "and": np.bitwise_and,
}


class Buffer:
    """Memory of a kernel: poison until it is written. It may serve several launches.

    Args:
        shape, dtype: those of the array in it.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, name: str = "") -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.name, self.address = name, 0
        self.bytes = np.full(math.prod(self.shape) * self.dtype.itemsize, POISON, np.uint8)
        self.written = np.zeros(self.bytes.size, bool)
        self.history: History | None = None  # of this launch

    @classmethod
    def of(cls, array: np.ndarray, name: str = "") -> "Buffer":
        """A copy of `array`."""
        buffer = cls(array.shape, array.dtype, name)
        buffer.bytes[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        buffer.written[:] = True
        return buffer

    def array(self) -> np.ndarray:
        """The content, as a view."""
        return self.bytes.view(self.dtype).reshape(self.shape)


class Memory:
    """Global and shared memory of one launch.

    Args:
        buffers: in global memory; get their addresses here.
        shift: each begins so many of its elements after a multiple of 256 bytes.
    """

    def __init__(self, buffers: Sequence[Buffer], watch: Watch, shift: int) -> None:
        self._watch, self._buffers = watch, list(buffers)
        self.shared = Buffer((0,), np.uint8, "shared memory")
        address = _FIRST_ADDRESS
        for buffer in self._buffers:
            buffer.address = address + shift * buffer.dtype.itemsize
            buffer.history = History(buffer.bytes.size, buffer.name, watch)
            address += -(-(buffer.bytes.size + _GAP) // _ALIGNMENT) * _ALIGNMENT
        self._addresses = np.array([buffer.address for buffer in self._buffers], np.int64)

    def new_shared(self, size: int, poison: int) -> None:
        """Give the next block its shared memory."""
        self.shared = Buffer((size,), np.uint8, "shared memory")
        self.shared.bytes[:] = poison
        self.shared.history = History(size, self.shared.name, self._watch)

    def load(
        self, instruction: Instruction, addresses: np.ndarray, lanes: np.ndarray, count: int
    ) -> np.ndarray:
        """Values [lanes, count] at the addresses; 0 where the access is not allowed."""
        kind = NUMPY_TYPES[instruction.kind]
        values = np.zeros((len(lanes), count), kind)
        for buffer, at, which in self._accesses(instruction, addresses, count):
            if not buffer.written[at].all():
                self._watch.add("read of memory that nobody wrote", instruction, buffer.name)
            assert buffer.history is not None
            if "nc" in instruction.parts:
                buffer.history.read_constant(instruction)
            else:
                buffer.history.read(*_flat(at, lanes[which]), instruction)
            values[which] = buffer.bytes[at].view(kind)
        return values

    def store(
        self,
        instruction: Instruction,
        addresses: np.ndarray,
        lanes: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Write values [lanes, count] at the addresses where that is allowed."""
        for buffer, at, which in self._accesses(instruction, addresses, values.shape[1]):
            assert buffer.history is not None
            buffer.history.write(*_flat(at, lanes[which]), instruction, atomic=False)
            here = np.ascontiguousarray(values[which].astype(NUMPY_TYPES[instruction.kind]))
            buffer.bytes[at] = here.view(np.uint8).reshape(at.shape)
            buffer.written[at] = True

    def update(
        self,
        instruction: Instruction,
        addresses: np.ndarray,
        lanes: np.ndarray,
        values: np.ndarray,
    ) -> np.ndarray:
        """Atomically combine each value with that in memory, which is returned, in lane order."""
        combine = _ATOMIC[instruction.parts[2]]
        old = np.zeros_like(values)
        for buffer, at, which in self._accesses(instruction, addresses, 1):
            if not buffer.written[at].all():
                self._watch.add("atomic on memory that nobody wrote", instruction, buffer.name)
            assert buffer.history is not None
            buffer.history.write(*_flat(at, lanes[which]), instruction, atomic=True)
            for bytes_at, lane in zip(at, which, strict=True):
                place = buffer.bytes[bytes_at[0] : bytes_at[0] + len(bytes_at)].view(values.dtype)
                old[lane] = place[0]
                place[0] = combine(place[0], values[lane])
        return old

    def _accesses(
        self, instruction: Instruction, addresses: np.ndarray, count: int
    ) -> Iterator[tuple[Buffer, np.ndarray, np.ndarray]]:
        """The buffer, its bytes [lanes, size] and the lanes of every part that is allowed."""
        size = SIZES[instruction.kind] * count
        if instruction.parts[1] == "shared":
            owners = np.zeros(len(addresses), np.int64)
            buffers = [self.shared]
        else:
            owners = np.searchsorted(self._addresses, addresses, side="right") - 1
            buffers = self._buffers
        first = owners[0]
        for owner in [first] if (owners == first).all() else np.unique(owners):
            which = np.flatnonzero(owners == owner)
            buffer = buffers[max(owner, 0)]
            offsets = addresses[which] - buffer.address
            allowed = self._check(instruction, buffer, offsets, size)
            if not allowed.all():
                offsets, which = offsets[allowed], which[allowed]
            if len(which):
                yield buffer, offsets[:, None] + np.arange(size), which

    def _check(
        self, instruction: Instruction, buffer: Buffer, offsets: np.ndarray, size: int
    ) -> np.ndarray:
        """Whether each access lies inside of the buffer and is aligned."""
        outside = (offsets < 0) | (offsets + size > buffer.bytes.size)
        if outside.any():
            detail = f"{buffer.name} of {buffer.bytes.size} bytes, offset {offsets[outside][0]}"
            self._watch.add("out of bounds", instruction, detail)
        misaligned = (buffer.address + offsets) % size != 0
        if misaligned.any():
            self._watch.add("misaligned", instruction, f"{buffer.name}, {size} bytes")
        return ~(outside | misaligned)


def _flat(at: np.ndarray, threads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, and the thread of each."""
    return at.reshape(-1), np.repeat(threads, at.shape[1])
