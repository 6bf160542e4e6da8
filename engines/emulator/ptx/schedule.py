"""Order in which the threads of a block run, between barriers and warp primitives."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from engines.emulator.ptx.instructions import CONTROL, Step
from engines.emulator.ptx.operands import Lanes, Operands
from engines.emulator.ptx.parse import WARP_OPERATIONS, Fault, Instruction, Kernel
from engines.emulator.ptx.problems import Watch

Group = tuple[int, Lanes]  # threads that are at one instruction

SPLIT = 0.15  # how often a group parts before it runs on
QUANTUM = 50  # instructions that a group runs at a time, at most


class Scheduler:
    """Runs blocks of one launch.

    Args:
        random: None runs all threads in step, groups that parted from the smallest instruction
            on. A generator lets groups run in any order, part into warps and lanes, and join: what
            threads of a GPU may do.
    """

    def __init__(
        self,
        kernel: Kernel,
        steps: Sequence[Step],
        operands: Operands,
        threads: int,
        watch: Watch,
        random: np.random.Generator | None,
    ) -> None:
        self._kernel, self._steps, self._threads = kernel, steps, threads
        self._watch, self._random, self._registers = watch, random, operands.registers
        self.counts: Counter[str] = Counter()  # warp instructions by opcode
        self._groups: list[Group] = []
        self._at_barrier: list[Group] = []
        self._at_warp: dict[int, Lanes] = {}

    def run_block(self) -> None:
        """Run one block to its end; registers keep what the block before left, as on a GPU."""
        self._groups = [(0, np.arange(self._threads))]
        while self._groups or self._pass_barrier():
            if self._random is None:
                start, lanes = self._lowest()
                limit = min((at for at, _ in self._groups), default=1 << 60)
                self._advance(start, lanes, 1 << 60, limit)
            else:
                start, lanes = self._any(self._random)
                self._advance(start, lanes, int(self._random.integers(1, QUANTUM)), 1 << 60)

    def _pass_barrier(self) -> bool:
        """Let the threads at the barrier go on; False if there are none."""
        instructions = self._kernel.instructions
        if self._at_warp:
            at = min(self._at_warp)
            raise Fault(
                f"{self._kernel.name}: threads wait at {instructions[at].text!r} for others of "
                "their warp that never come"
            )
        if not self._at_barrier:
            return False
        at = instructions[self._at_barrier[0][0]]
        waiting = sum(len(lanes) for _, lanes in self._at_barrier)
        if waiting != self._threads:
            detail = f"{waiting} of {self._threads}"
            self._watch.add("a barrier that not all threads reach", at, detail)
        by_place = defaultdict(list)
        for place, lanes in self._at_barrier:
            by_place[place].append(lanes)
        if len(by_place) > 1:
            self._watch.add("threads meet at different barriers", at)
        self._groups = [(place + 1, _union(*parts)) for place, parts in by_place.items()]
        self._at_barrier = []
        self._watch.epoch += 1
        return True

    def _lowest(self) -> Group:
        """All threads at the smallest instruction."""
        start = min(at for at, _ in self._groups)
        return self._join(start, np.zeros(0, np.int64))

    def _any(self, random: np.random.Generator) -> Group:
        """Some threads that are at one instruction."""
        start, lanes = self._groups.pop(int(random.integers(len(self._groups))))
        if random.random() < 0.5:
            start, lanes = self._join(start, lanes)
        if len(lanes) > 1 and random.random() < SPLIT:
            if random.random() < 0.5:
                chosen = (random.random(self._threads // 32 + 1) < 0.5)[lanes // 32]
            else:
                chosen = random.random(len(lanes)) < 0.5
            if chosen.any() and not chosen.all():
                self._groups.append((start, lanes[~chosen]))
                lanes = lanes[chosen]
        return start, lanes

    def _join(self, start: int, lanes: Lanes) -> Group:
        """Take the groups at `start` out and add them to `lanes`."""
        same = [others for at, others in self._groups if at == start]
        if same:
            self._groups = [group for group in self._groups if group[0] != start]
            lanes = _union(lanes, *same)
        return start, lanes

    def _advance(self, at: int, lanes: Lanes, budget: int, limit: int) -> None:
        """Run threads until they part, wait or end, or have had their share."""
        instructions, end = self._kernel.instructions, len(self._kernel.instructions)
        while at < end:
            instruction = instructions[at]
            if self._random is None:
                self.counts[".".join(instruction.parts)] += len(np.unique(lanes >> 5))
            if instruction.operation in WARP_OPERATIONS:
                self._meet_warp(instruction, lanes)
                return
            if instruction.operation in CONTROL:
                stay = self._control(instruction, lanes)
                if stay is None:
                    return
                at, lanes = stay
            else:
                active = self._active(instruction, lanes)
                if len(active):
                    self._steps[at](active)
                at += 1
            budget -= 1
            if budget <= 0 or at >= limit:
                self._groups.append((at, lanes))
                return

    def _active(self, instruction: Instruction, lanes: Lanes) -> Lanes:
        """The threads whose guard is true."""
        if instruction.guard is None:
            return lanes
        return lanes[self._registers[instruction.guard][lanes] ^ instruction.negated]

    def _control(self, instruction: Instruction, lanes: Lanes) -> Group | None:
        """Where a branch, barrier or return leaves the threads; None if they part, wait or end."""
        if instruction.operation == "bar":
            self._at_barrier.append((instruction.index, lanes))
            return None
        active = self._active(instruction, lanes)
        after = instruction.index + 1
        if len(active) == 0:
            return after, lanes
        rest = np.setdiff1d(lanes, active, assume_unique=True)
        if instruction.operation != "bra":  # those that are done are forgotten
            return (after, rest) if len(rest) else None
        if len(rest) == 0:
            return instruction.target, lanes
        self._groups += [(instruction.target, active), (after, rest)]
        return None

    def _meet_warp(self, instruction: Instruction, lanes: Lanes) -> None:
        """Run a warp primitive for the warps whose lanes are all there; the others wait."""
        if instruction.guard is not None:
            raise Fault(f"a warp primitive with a guard: {instruction.text}")
        waiting = self._at_warp.pop(instruction.index, None)
        if waiting is not None:
            lanes = _union(lanes, waiting)
        warps = lanes >> 5
        complete = (np.bincount(warps) == 32)[warps]
        if not complete.all():
            self._at_warp[instruction.index] = lanes[~complete]
        if complete.any():
            lanes = lanes[complete]
            self._steps[instruction.index](lanes)
            self._groups.append((instruction.index + 1, lanes))


def _union(*parts: Lanes) -> Lanes:
    return np.sort(np.concatenate(parts))
