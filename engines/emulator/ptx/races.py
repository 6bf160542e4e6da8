"""Races: accesses to a byte that nothing orders, one of them a write."""

import numpy as np

from engines.emulator.ptx.parse import Instruction
from engines.emulator.ptx.problems import Watch

SEVERAL = -2  # in the place of a thread: more than one


class History:
    """Last write and last reads of every byte of a buffer.

    Two accesses to a byte race if one is a write, not both are atomic, and they come from two
    threads of a block without a bar.sync between them, or from two blocks. Warp primitives wait,
    but do not order memory.
    """

    def __init__(self, size: int, name: str, watch: Watch) -> None:
        self._name, self._watch = name, watch
        self._write_stamp, self._read_stamp = np.full((2, size), -1, np.int64)
        self._write_thread, self._read_thread = np.full((2, size), -1, np.int32)
        self._write_instruction, self._read_instruction = np.full((2, size), -1, np.int32)
        self._write_atomic, self._read_by_blocks = np.zeros((2, size), bool)
        self._constant = self._written = False

    def read_constant(self, instruction: Instruction) -> None:
        """Note an ld.global.nc, whose buffer must not be written during the launch."""
        self._constant = True
        if self._written:
            self._watch.add("ld.global.nc of a buffer that is written", instruction, self._name)

    def read(self, at: np.ndarray, threads: np.ndarray, instruction: Instruction) -> None:
        """Note a read of the bytes `at` by `threads`, one each."""
        self._check_writes("read", at, threads, instruction)
        before, now = self._read_stamp[at], self._watch.now
        self._read_by_blocks[at] |= self._watch.other_block(before)
        several = (before == now) & (self._read_thread[at] != threads)
        self._read_stamp[at], self._read_instruction[at] = now, instruction.index
        self._read_thread[at] = threads  # of lanes that read one byte, the last
        several |= self._read_thread[at] != threads
        self._read_thread[at[several]] = SEVERAL

    def write(
        self, at: np.ndarray, threads: np.ndarray, instruction: Instruction, *, atomic: bool
    ) -> None:
        """Note a write of the bytes `at` by `threads`, one each."""
        self._written = True
        if self._constant:
            self._watch.add("write to a buffer that ld.global.nc reads", instruction, self._name)
        self._check_writes("write", at, threads, instruction, atomic=atomic)
        clash = self._clash(self._read_stamp[at], self._read_thread[at], threads)
        clash |= self._read_by_blocks[at]
        if clash.any():
            earlier = int(self._read_instruction[at[clash][0]])
            self._watch.add_race("write after read", instruction, self._name, earlier)
        self._write_stamp[at], self._write_thread[at] = self._watch.now, threads
        self._write_atomic[at], self._write_instruction[at] = atomic, instruction.index
        if not atomic and (self._write_thread[at] != threads).any():
            self._watch.add("two lanes write one byte", instruction, self._name)

    def _check_writes(
        self,
        access: str,
        at: np.ndarray,
        threads: np.ndarray,
        instruction: Instruction,
        *,
        atomic: bool = False,
    ) -> None:
        """Report a race of this access with an earlier write."""
        clash = self._clash(self._write_stamp[at], self._write_thread[at], threads)
        if atomic:
            clash &= ~self._write_atomic[at]
        if clash.any():
            earlier = int(self._write_instruction[at[clash][0]])
            self._watch.add_race(f"{access} after write", instruction, self._name, earlier)

    def _clash(self, stamps: np.ndarray, earlier: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Which bytes another thread used before, with no barrier between."""
        same = (stamps == self._watch.now) & (earlier != threads)
        return same | self._watch.other_block(stamps)
