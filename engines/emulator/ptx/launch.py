"""Launches of PTX kernels on numpy arrays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.emulator.ptx.instructions import Instructions
from engines.emulator.ptx.memory import Buffer, Memory
from engines.emulator.ptx.operands import Operands
from engines.emulator.ptx.parse import Fault, Kernel, kernels_from_text
from engines.emulator.ptx.problems import Problem, Watch
from engines.emulator.ptx.schedule import Scheduler

MODES = ("lockstep", "random")
_POISONS = (0xCD, 0x7F, 0x5A)  # of shared memory


@dataclass(frozen=True)
class LaunchResult:
    """Findings of one launch."""

    problems: Counter[Problem]  # and how often each came up
    counts: Counter[str]  # warp instructions by opcode; empty in random mode
    unwritten: dict[int, int]  # argument: bytes of the buffer that nobody wrote, 0 left out


class Module:
    """The kernels of a .ptx file.

    result = Module(kernels.ptx("class_nms")).launch("class_nms", (1, 1, 1), 1024, args)
    assert not result.problems
    """

    def __init__(self, text: str) -> None:
        self.kernels = kernels_from_text(text)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        args: Sequence[np.ndarray | Buffer | int],
        *,
        mode: str = "lockstep",
        seed: int = 0,
        shift: int = 0,
    ) -> LaunchResult:
        """Run a kernel to its end.

        Args:
            args: arrays, which are read and written, buffers, and 32-bit scalars.
            mode: "lockstep" is fast and counts; "random" lets threads run in any order.
            seed: of the order, and of the garbage in registers and shared memory.
            shift: each buffer begins so many of its elements after a multiple of 256 bytes.

        Raises:
            Fault: a deadlock, or PTX that is not known here.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        random = np.random.default_rng(seed)
        entry = self.kernels[kernel]
        if entry.most_threads is not None and block > entry.most_threads:
            raise Fault(f"{block} threads, but .maxntid of {kernel} is {entry.most_threads}")
        watch = Watch(entry.instructions)
        buffers = _buffers(args)
        memory = Memory(list(buffers.values()), watch, shift)
        operands = Operands(entry, grid, block, random)
        maker = Instructions(operands, memory, _parameters(entry, args, buffers), watch)
        steps = [maker.step(instruction) for instruction in entry.instructions]
        order = random if mode == "random" else None
        scheduler = Scheduler(entry, steps, operands, block, watch, order)
        with np.errstate(all="ignore"):
            for index in _blocks(grid, order):
                operands.block = index
                watch.block, watch.epoch = watch.block + 1, 0
                memory.new_shared(entry.shared_bytes, int(random.choice(_POISONS)))
                scheduler.run_block()
        for i, buffer in buffers.items():
            if isinstance(given := args[i], np.ndarray):
                given[...] = buffer.array()
        unwritten = {i: int((~buffer.written).sum()) for i, buffer in buffers.items()}
        unwritten = {i: count for i, count in unwritten.items() if count}
        return LaunchResult(watch.problems, scheduler.counts, unwritten)


def _buffers(args: Sequence[np.ndarray | Buffer | int]) -> dict[int, Buffer]:
    """The buffer of every argument that has one."""
    buffers = {}
    for i, argument in enumerate(args):
        if isinstance(argument, np.ndarray):
            buffers[i] = Buffer.of(argument)
        elif isinstance(argument, Buffer):
            buffers[i] = argument
    for i, buffer in buffers.items():
        buffer.name = f"argument {i}"
    return buffers


def _parameters(
    kernel: Kernel, args: Sequence[np.ndarray | Buffer | int], buffers: dict[int, Buffer]
) -> dict[str, np.generic]:
    """The value of each parameter: an address, or the bits of a scalar."""
    values: dict[str, np.generic] = {}
    for i, ((kind, name), argument) in enumerate(zip(kernel.parameters, args, strict=True)):
        if i in buffers:
            if kind != "u64":
                raise Fault(f"{name} is .{kind}, not a pointer")
            values[name] = np.uint64(buffers[i].address)
        else:
            if kind != "u32":
                raise Fault(f"{name} is .{kind}, not a 32-bit scalar")
            assert isinstance(argument, int)
            values[name] = np.uint32(argument & 0xFFFFFFFF)
    return values


def _blocks(
    grid: tuple[int, int, int], random: np.random.Generator | None
) -> list[tuple[int, int, int]]:
    """The index (x, y, z) of every block in the order in which they run."""
    order = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    return order if random is None else [order[i] for i in random.permutation(len(order))]
