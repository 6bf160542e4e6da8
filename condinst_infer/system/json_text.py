"""JSON from outside: every text is parsed here, and what it may not hold is one sentence.

`json.loads` alone lets through what later code stumbles over: numbers that are not finite or that
no array holds, nesting that only its own recursion ends, halves of characters.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from condinst_infer.errors import CondInstError, shorten

MAX_DEPTH = 50  # lists and objects inside each other; a polygon of COCO is 5 deep
MAX_DIGITS = 20  # of whole numbers that are read at all; 64 bits have 19
WHOLE_NUMBERS = range(-(2**63), 2**63)  # what int64 holds

_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: str | bytes, where: str, error: type[CondInstError]) -> Any:
    """The value in a JSON text from outside; of equal keys the last counts.

    Args:
        text: as bytes UTF-8, with or without a byte order mark.
        where: the file, or the part of it, that errors name: "the metadata of model.onnx".
        error: class of the error.

    Raises:
        error: not JSON, not UTF-8, nested deeper than `MAX_DEPTH`, or a number that is not finite
            or does not fit into 64 bits. Bytes of file names that are no UTF-8 are let through as
            Python writes them, as escapes from U+DC80.
    """
    try:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        text = data.decode("utf-8-sig", "surrogateescape" if isinstance(text, str) else "strict")
    except UnicodeError:
        raise error(f"{where} is not UTF-8 text.") from None
    deep, odd = _may_be_deep(data), _may_have_odd_values(data)
    try:
        value = json.loads(text, parse_int=_whole_number if odd else None)
    except RecursionError:
        raise error(f"{where} is nested deeper than {MAX_DEPTH} lists and objects.") from None
    except MemoryError:
        raise error(f"{where} needs more memory than there is.") from None
    except ValueError as problem:
        raise error(f"{where} is not JSON: {problem}.") from None
    if deep or odd:
        for field, rule in _faults(value):
            raise error(f"{where}: {field} {rule}." if field else f"{where} {rule}.")
    return value


def _whole_number(digits: str) -> int | float:
    """The number, or an infinite one for which `_faults` has the field's name."""
    if len(digits) <= MAX_DIGITS:
        return int(digits)
    return -math.inf if digits[0] == "-" else math.inf


def _may_be_deep(data: bytes) -> bool:
    """False if no value is nested too deeply; brackets in strings count as well."""
    brackets = data.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        fewer = brackets.replace(b"[]", b"")  # the innermost lists
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return bool(brackets)


def _may_have_odd_values(data: bytes) -> bool:
    """False if all numbers are finite and fit, and all characters are whole.

    A COCO file has 45 million numbers: to look at each one's value takes as long as parsing.
    """
    zeros = data.translate(_DIGITS)
    return (
        any(sign in zeros for sign in (b"0" * 19, b"e000", b"e+000", b"\\ud", b"\\uD"))
        or b"NaN" in data
        or b"Infinity" in data
    )


def _faults(value: Any) -> Iterator[tuple[str, str]]:
    """Field and rule of each value that may not be there."""
    rest = [(value, "", 1)]
    while rest:
        value, field, depth = rest.pop()
        if isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                yield "", f"is nested deeper than {MAX_DEPTH} lists and objects"
                return
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                if isinstance(key, str) and not _is_text(key):
                    yield f"the key {shorten(key)}", "has half a character"
                step = f"[{key}]" if isinstance(key, int) else f".{shorten(key)[1:-1]}"
                rest.append((item, f"{field}{step}".removeprefix("."), depth + 1))
        elif isinstance(value, float) and not math.isfinite(value):
            yield field, f"is {value}; it must be a finite number"
        elif type(value) is int and value not in WHOLE_NUMBERS:
            yield field, f"is {value}; it must be a number of 64 bits"
        elif isinstance(value, str) and not _is_text(value):
            yield field, f"is {shorten(value)}, which has half a character"


def _is_text(text: str) -> bool:
    """False for surrogates that are no bytes of a file's name."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True
