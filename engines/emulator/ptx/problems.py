"""Problems that a launch may show, and when."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from engines.emulator.ptx.parse import Instruction

MOST_PROBLEMS = 50  # different ones of a launch that are kept


class Problem(NamedTuple):
    """One thing that a kernel does wrong."""

    kind: str  # such as "read after write, no barrier"
    instruction: str  # its text
    detail: str  # the buffer, and the earlier instruction of a race


class Watch:
    """The moment of a launch, and the problems seen so far."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self.problems: Counter[Problem] = Counter()
        self.block = self.epoch = 0  # the block that runs; barriers that it has passed
        self._instructions = instructions

    @property
    def now(self) -> int:
        """Block and epoch as one number."""
        return self.block << 24 | self.epoch

    def other_block(self, stamps: np.ndarray) -> np.ndarray:
        """Whether each number that was `now` once, or -1 for never, is of another block."""
        return (stamps >= 0) & (stamps >> 24 != self.block)

    def add(self, kind: str, instruction: Instruction, detail: str = "") -> None:
        """Count a problem, unless there are too many others already."""
        problem = Problem(kind, instruction.text, detail)
        if problem in self.problems or len(self.problems) < MOST_PROBLEMS:
            self.problems[problem] += 1

    def add_race(self, kind: str, instruction: Instruction, buffer: str, earlier: int) -> None:
        """Count a race with the instruction of index `earlier`."""
        detail = f"{buffer}; before: {self._instructions[earlier].text}"
        self.add(f"{kind}, no barrier", instruction, detail)
