"""PTX text as data: kernels with their parameters, registers, shared memory and instructions."""

import re
from dataclasses import dataclass, field

import numpy as np

NUMPY_TYPES: dict[str, type] = {
    "s8": np.int8,
    "u8": np.uint8,
    "b8": np.uint8,
    "s16": np.int16,
    "u16": np.uint16,
    "b16": np.uint16,
    "s32": np.int32,
    "u32": np.uint32,
    "b32": np.uint32,
    "s64": np.int64,
    "u64": np.uint64,
    "b64": np.uint64,
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.uint16,  # its bits
    "pred": np.bool_,
}
SIZES = {name: np.dtype(kind).itemsize for name, kind in NUMPY_TYPES.items()}
WARP_OPERATIONS = ("vote", "shfl")  # wait for all lanes of a warp

_VECTOR = re.compile(r"\{(\s*%\w+(?:\s*,\s*%\w+)+\s*)\}")
_OPEN, _CLOSE = "\x01", "\x02"  # stand for the braces of a vector while statements are cut
# A label ends with ":", another statement with ";"; braces of scopes are skipped.
_STATEMENT = re.compile(r"\s*([^;{}:\s][^;:]*?)([;:])|\s*[{}]")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)


class Fault(Exception):
    """A launch can't begin or go on: unknown PTX, or threads that wait for ever."""


@dataclass
class Instruction:
    """One instruction: "@!%p1 bra $L" has the guard %p1, negated, and the operation bra."""

    index: int  # in its kernel
    text: str
    parts: list[str]  # of the opcode, such as ["ld", "global", "nc", "f32"]
    operands: list[str]
    guard: str | None
    negated: bool
    target: int = -1  # index of the instruction that a branch goes to

    @property
    def operation(self) -> str:
        """First word of the opcode."""
        return self.parts[0]

    @property
    def kind(self) -> str:
        """PTX type of the operands: the last word of the opcode."""
        return self.parts[-1]


@dataclass
class Kernel:
    """One .entry of a module."""

    name: str
    parameters: list[tuple[str, str]]  # (PTX type, name)
    most_threads: int | None  # .maxntid
    registers: dict[str, str] = field(default_factory=dict)  # name: PTX type
    shared: dict[str, int] = field(default_factory=dict)  # name: first byte
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)


def kernels_from_text(text: str) -> dict[str, Kernel]:
    """The kernels of a .ptx file by name."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    kernels = {}
    for match in re.finditer(r"\.entry\s+(\w+)\s*\(", text):
        close = text.index(")", match.end())
        begin = text.index("{", close) + 1
        depth, end = 1, begin
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        limit = re.search(r"\.maxntid\s+(\d+)", text[close:begin])
        parameters = re.findall(
            r"\.param\s+\.(\w+)\s+(?:\.ptr[^,]*?)?(\w+)", text[match.end() : close]
        )
        kernel = Kernel(match[1], parameters, int(limit[1]) if limit else None)
        _read_body(kernel, text[begin : end - 1])
        kernels[kernel.name] = kernel
    return kernels


def split_operands(text: str) -> list[str]:
    """Cut "{%r1, %r2}, [%rd1+4]" at its outer commas."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def vector_of(operand: str) -> list[str]:
    """The registers of "{%r1, %r2}" or of a single one."""
    return split_operands(operand.strip("{}"))


def _read_body(kernel: Kernel, body: str) -> None:
    labels: dict[str, int] = {}
    body = _VECTOR.sub(rf"{_OPEN}\1{_CLOSE}", body)
    for match in _STATEMENT.finditer(body):
        if match[1] is None:
            continue
        statement = match[1].strip().replace(_OPEN, "{").replace(_CLOSE, "}")
        if match[2] == ":":
            labels[statement] = len(kernel.instructions)
        elif statement.startswith(".reg"):
            _read_registers(kernel, statement)
        elif statement.startswith(".shared"):
            _read_shared(kernel, statement)
        elif not statement.startswith("."):  # .pragma and .loc tell nothing
            kernel.instructions.append(_instruction(len(kernel.instructions), statement))
    for instruction in kernel.instructions:
        if instruction.operation == "bra":
            instruction.target = labels[instruction.operands[0]]


def _read_registers(kernel: Kernel, statement: str) -> None:
    """Read ".reg .b32 %r<5>" or ".reg .b16 hi, lo"."""
    match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.DOTALL)
    assert match is not None, statement
    for name in split_operands(match[2]):
        several = re.match(r"(%?\w+)<(\d+)>", name)
        names = [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]
        kernel.registers.update(dict.fromkeys(names, match[1]))


def _read_shared(kernel: Kernel, statement: str) -> None:
    """Read ".shared .align 16 .b8 name[320]"."""
    match = re.match(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?", statement)
    if match is None:
        raise Fault(f"unknown declaration: {statement}")
    align, count = int(match[1]), int(match[4] or 1)
    first = -(-kernel.shared_bytes // align) * align
    kernel.shared[match[3]] = first
    kernel.shared_bytes = first + count * SIZES[match[2]]


def _instruction(index: int, statement: str) -> Instruction:
    match = _INSTRUCTION.match(statement)
    if match is None:
        raise Fault(f"unknown statement: {statement}")
    operands = split_operands(match[4])
    return Instruction(
        index, statement, match[3].split("."), operands, match[2], negated=match[1] == "!"
    )
