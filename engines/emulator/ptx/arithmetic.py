"""Arithmetic of PTX on arrays: for an opcode, the types of its operands and a function.

Floating point is rounded as PTX says; ex2.approx and div.approx are exact here.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engines.emulator.ptx.parse import NUMPY_TYPES, SIZES, Fault

Compute = Callable[..., np.ndarray]
_WIDE = np.longdouble  # holds a product of two float32 exactly


class Operation(NamedTuple):
    """A function of the operands behind the first, which takes the result."""

    result: str  # PTX type
    sources: tuple[str, ...]  # PTX types
    compute: Compute


def operation_of(parts: list[str]) -> Operation:
    """The operation of an opcode such as ["mad", "lo", "s32"]; Fault if it is not known."""
    name, kind = parts[0], parts[-1]
    try:
        if name == "cvt":
            return Operation(parts[-2], (kind,), _conversion(parts[1:-2], parts[-2], kind))
        if name == "setp":
            return Operation("pred", (kind, kind), _comparison(parts[1], kind))
        if name == "selp":
            return Operation(
                kind, (kind, kind, "pred"), lambda a, b, chosen: np.where(chosen, a, b)
            )
        if kind == "pred":
            sources = ("pred",) if name == "not" else ("pred", "pred")
            return Operation("pred", sources, _LOGIC[name])
        if kind == "f32":
            return _float_operation(name, set(parts[1:-1]))
        return _integer_operation(name, kind, parts[1:-1])
    except KeyError:
        raise Fault(f"unknown instruction: {'.'.join(parts)}") from None


_LOGIC = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
}
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _comparison(name: str, kind: str) -> Compute:
    compare = _COMPARISONS[name[:2]]
    if kind != "f32":
        return compare
    unordered = len(name) == 3  # such as "leu": true if either is nan
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), unordered, compare(a, b))


def _conversion(modes: list[str], to: str, of: str) -> Compute:
    kind = NUMPY_TYPES[to]
    if to == "f16":
        return lambda a: a.astype(np.float16).view(np.uint16)
    if of == "f16":
        wider = _conversion(modes, to, "f32")
        return lambda a: wider(a.view(np.float16).astype(np.float32))
    if (to, of) == ("f32", "f32") and modes:
        return {"rmi": np.floor, "sat": _saturated}[modes[0]]
    if of == "f32" and to != "f32":
        if modes != ["rzi"]:
            raise KeyError(to)
        limits = np.iinfo(kind)
        return lambda a: np.clip(
            np.where(np.isnan(a), 0, np.trunc(a.astype(np.float64))), limits.min, limits.max
        ).astype(kind)
    return lambda a: a.astype(kind)


def _saturated(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.float32(0), np.clip(values, 0, 1)).astype(np.float32)


_FLOATS: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
    "ex2": lambda a: np.exp2(a.astype(np.float64)).astype(np.float32),
}
_ONE_SOURCE = ("neg", "abs", "not", "sqrt", "rcp", "ex2", "popc", "brev", "bfind")


def _float_operation(name: str, modes: set[str]) -> Operation:
    if name == "fma":
        rounded = _rounded_down if "rm" in modes else _rounded
        return Operation(
            "f32", ("f32",) * 3, lambda a, b, c: rounded(a.astype(_WIDE) * b.astype(_WIDE) + c)
        )
    compute = _approximate_quotient if name == "div" and "approx" in modes else _FLOATS[name]
    return Operation("f32", ("f32",) * (1 if name in _ONE_SOURCE else 2), compute)


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _rounded_down(values: np.ndarray) -> np.ndarray:
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def _approximate_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient of div.approx, which is 0 where 2^126 < |b| < 2^128, or nan of infinity."""
    large = (np.abs(b) > 2.0**126) & np.isfinite(b)
    return np.where(large, np.where(np.isinf(a), np.float32(np.nan), np.float32(0)), a / b)


_INTEGERS: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "min": np.minimum,
    "max": np.maximum,
    "neg": np.negative,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
    "div": lambda a, b: _quotient(a, b),
    "rem": lambda a, b: a - _quotient(a, b) * b,
}


def _integer_operation(name: str, kind: str, modes: list[str]) -> Operation:
    if name in ("mul", "mad") and ("wide" in modes or "hi" in modes):
        return _wide_product(name, kind, modes)
    if name == "popc":
        return Operation("u32", (kind,), _popcount)
    if name == "brev":
        return Operation(kind, (kind,), _reversed)
    if name == "bfind" and modes == ["shiftamt"]:
        return Operation("u32", (kind,), _leading_zeros)
    if name == "bfi":
        return Operation(kind, (kind, kind, "u32", "u32"), _inserted)
    if name in ("shl", "shr"):
        return Operation(kind, (kind, "u32"), _left if name == "shl" else _right)
    sources = 1 if name in _ONE_SOURCE else 3 if name == "mad" else 2
    return Operation(kind, (kind,) * sources, _INTEGERS[name])


def _wide_product(name: str, kind: str, modes: list[str]) -> Operation:
    bits = 8 * SIZES[kind]
    wide_kind = f"{kind[0]}{2 * bits}"
    wide, narrow = NUMPY_TYPES[wide_kind], NUMPY_TYPES[kind]
    if "hi" in modes:
        if name == "mad":
            raise KeyError(name)
        return Operation(
            kind, (kind, kind), lambda a, b: (a.astype(wide) * b >> wide(bits)).astype(narrow)
        )
    if name == "mul":
        return Operation(wide_kind, (kind, kind), lambda a, b: a.astype(wide) * b.astype(wide))
    return Operation(
        wide_kind, (kind, kind, wide_kind), lambda a, b, c: a.astype(wide) * b.astype(wide) + c
    )


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The quotient, rounded towards zero."""
    if (b == 0).any():
        raise Fault("a whole number is divided by zero")
    down = a // b
    return down + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)


def _popcount(values: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1)
    return bits.sum(axis=1, dtype=np.uint32)


def _reversed(values: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(values[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(values.dtype)[:, 0]


def _leading_zeros(values: np.ndarray) -> np.ndarray:
    """By how much a 32-bit number has to be shifted to the left; 2^32 - 1 for zero."""
    length = np.frexp(values.astype(np.float64))[1]
    return np.where(values == 0, 0xFFFFFFFF, 32 - length).astype(np.uint32)


def _inserted(
    bits: np.ndarray, into: np.ndarray, first: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """The `count` lowest `bits` in the place from bit `first` of `into` on."""
    one, first, count = np.uint64(1), first.astype(np.uint64), count.astype(np.uint64)
    ones = np.where(count >= 64, ~np.uint64(0), (one << np.minimum(count, 63)) - one)
    mask = ones << first
    return (into & ~mask | bits.astype(np.uint64) << first & mask).astype(into.dtype)


def _left(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * values.itemsize
    shifted = values << np.minimum(by, bits - 1).astype(values.dtype)
    return np.where(by >= bits, 0, shifted).astype(values.dtype)


def _right(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * values.itemsize
    shifted = values >> np.minimum(by, bits - 1).astype(values.dtype)
    if np.issubdtype(values.dtype, np.signedinteger):
        return shifted
    return np.where(by >= bits, 0, shifted).astype(values.dtype)
