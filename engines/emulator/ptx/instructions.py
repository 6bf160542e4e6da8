"""Instructions of a kernel as functions that run them for some threads."""

from collections.abc import Callable

import numpy as np

from engines.emulator.ptx.arithmetic import operation_of
from engines.emulator.ptx.memory import Memory
from engines.emulator.ptx.operands import Lanes, Operands
from engines.emulator.ptx.parse import SIZES, Fault, Instruction, vector_of
from engines.emulator.ptx.problems import Watch

Step = Callable[[Lanes], None]
CONTROL = ("bra", "ret", "exit", "bar")  # what the scheduler does itself
_WHOLE_WARP = 0xFFFFFFFF
_BITS = np.uint64(1) << np.arange(32, dtype=np.uint64)  # of a ballot, per lane


class Instructions:
    """Makes the functions.

    Args:
        parameters: value of each kernel parameter, an integer of its type.
    """

    def __init__(
        self,
        operands: Operands,
        memory: Memory,
        parameters: dict[str, np.generic],
        watch: Watch,
    ) -> None:
        self._operands, self._memory = operands, memory
        self._parameters, self._watch = parameters, watch
        self._makers = {
            "ld": self._load,
            "st": self._store,
            "red": self._reduce,
            "atom": self._atomic,
            "mov": self._move,
            "cvta": self._move,
            "vote": self._ballot,
            "shfl": self._shuffle,
        }

    def step(self, instruction: Instruction) -> Step:
        """The function of one instruction, but for its guard."""
        if instruction.operation in CONTROL:
            return _nothing
        return self._makers.get(instruction.operation, self._compute)(instruction)

    def _compute(self, instruction: Instruction) -> Step:
        result, kinds, compute = operation_of(instruction.parts)
        write = self._operands.target(instruction.operands[0], result)
        names = instruction.operands[1:]
        reads = [self._operands.source(*pair) for pair in zip(names, kinds, strict=True)]

        def step(lanes: Lanes) -> None:
            write(lanes, compute(*[read(lanes) for read in reads]))

        return step

    def _load(self, instruction: Instruction) -> Step:
        registers, address = instruction.operands
        space, kind = instruction.parts[1], instruction.kind
        if space == "param":
            return self._load_parameter(registers, address, kind)
        if space not in ("shared", "global"):
            raise Fault(f"unknown instruction: {instruction.text}")
        writes = [self._operands.target(name, kind) for name in vector_of(registers)]
        addresses = self._operands.address(address)

        def step(lanes: Lanes) -> None:
            values = self._memory.load(instruction, addresses(lanes), lanes, len(writes))
            for i, write in enumerate(writes):
                write(lanes, values[:, i])

        return step

    def _load_parameter(self, register: str, address: str, kind: str) -> Step:
        value = self._parameters[address.strip("[]")]
        write = self._operands.target(register, kind)
        return lambda lanes: write(lanes, np.full(len(lanes), value))

    def _store(self, instruction: Instruction) -> Step:
        address, registers = instruction.operands
        kind = instruction.kind
        reads = [self._operands.source(name, kind) for name in vector_of(registers)]
        addresses = self._operands.address(address)

        def step(lanes: Lanes) -> None:
            values = np.stack([read(lanes) for read in reads], axis=1)
            self._memory.store(instruction, addresses(lanes), lanes, values)

        return step

    def _reduce(self, instruction: Instruction) -> Step:
        address, value = instruction.operands
        addresses = self._operands.address(address)
        read = self._operands.source(value, _arithmetic_kind(instruction))

        def step(lanes: Lanes) -> None:
            self._memory.update(instruction, addresses(lanes), lanes, read(lanes))

        return step

    def _atomic(self, instruction: Instruction) -> Step:
        register, address, value = instruction.operands
        kind = _arithmetic_kind(instruction)
        addresses, read = self._operands.address(address), self._operands.source(value, kind)
        write = self._operands.target(register, kind)

        def step(lanes: Lanes) -> None:
            write(lanes, self._memory.update(instruction, addresses(lanes), lanes, read(lanes)))

        return step

    def _move(self, instruction: Instruction) -> Step:
        target, source = instruction.operands
        kind = instruction.kind
        if source.startswith("{"):
            raise Fault(f"unknown instruction: {instruction.text}")
        read = self._operands.source(source, kind)
        if not target.startswith("{"):
            write = self._operands.target(target, kind)
            return lambda lanes: write(lanes, read(lanes))
        half = 8 * SIZES[kind] // 2
        writes = [self._operands.target(name, f"u{half}") for name in vector_of(target)]

        def step(lanes: Lanes) -> None:
            values = read(lanes)
            for i, write in enumerate(writes):
                write(lanes, values >> values.dtype.type(i * half))

        return step

    def _ballot(self, instruction: Instruction) -> Step:
        target, predicate, members = instruction.operands
        if instruction.parts != ["vote", "sync", "ballot", "b32"]:
            raise Fault(f"unknown instruction: {instruction.text}")
        negated = predicate.startswith("!")
        write = self._operands.target(target, "b32")
        read = self._operands.source(predicate.lstrip("!"), "pred")
        mask = self._operands.source(members, "b32")

        def step(lanes: Lanes) -> None:  # of whole warps
            if (mask(lanes) != _WHOLE_WARP).any():
                self._watch.add("vote without the full mask", instruction)
            votes = (read(lanes) ^ negated).reshape(-1, 32)
            words = (votes * _BITS).sum(axis=1).astype(np.uint32)
            write(lanes, np.repeat(words, 32))

        return step

    def _shuffle(self, instruction: Instruction) -> Step:
        targets, value, distance, clamp, members = instruction.operands
        if instruction.parts != ["shfl", "sync", "bfly", "b32"]:
            raise Fault(f"unknown instruction: {instruction.text}")
        target, *in_range = targets.split("|")
        write = self._operands.target(target, "b32")
        write_in_range = [self._operands.target(name, "pred") for name in in_range]
        read = self._operands.source(value, "b32")
        read_distance = self._operands.source(distance, "u32")
        limit, mask = self._operands.source(clamp, "u32"), self._operands.source(members, "b32")

        def step(lanes: Lanes) -> None:  # of whole warps
            if (limit(lanes) != 31).any() or (mask(lanes) != _WHOLE_WARP).any():
                self._watch.add("shfl with another clamp or mask", instruction)
            places = np.arange(len(lanes))
            write(lanes, read(lanes)[places ^ read_distance(lanes).astype(np.int64)])
            for write_true in write_in_range:
                write_true(lanes, np.ones(len(lanes), bool))

        return step


def _nothing(lanes: Lanes) -> None:
    pass


def _arithmetic_kind(instruction: Instruction) -> str:
    """The type of an atomic's value: numbers for bits."""
    return instruction.kind.replace("b", "u")
