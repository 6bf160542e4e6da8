"""Types of the fields of dataclasses, checked: of values that callers give and of those in JSON."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from condinst_infer.errors import ConfigError, shorten

_WORDS: dict[Any, str] = {  # one value, several
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}
_MANY = {str: "texts", int: "whole numbers", float: "numbers", bool: "true or false"}


def has_type(value: Any, kind: Any) -> bool:
    """True if `value` is of the annotation `kind`; no bool is a number, and a number is finite."""
    if kind is float:
        return type(value) in (int, float) and -math.inf < value < math.inf  # of whole ones any
    if kind is str:
        return isinstance(value, str) and _is_text(value)
    if kind in _WORDS:
        return type(value) is kind
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(has_type(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is ...:
            return all(has_type(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(has_type, value, arguments))
    if origin is Mapping:
        of_key, of_item = arguments
        return isinstance(value, Mapping) and all(
            has_type(key, of_key) and has_type(item, of_item) for key, item in value.items()
        )
    return isinstance(value, kind)


def words_of(kind: Any) -> str:
    """The annotation `kind` in words, as in "it must be a list of whole numbers"."""
    if kind in _WORDS:
        return _WORDS[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(words_of, arguments))
    if origin is tuple:
        number = "" if arguments[-1] is ... else f"{len(arguments)} "
        return f"a list of {number}{_MANY.get(arguments[0], 'lists')}"
    return "an object"


def field_from_json(value: Any, kind: Any, name: str) -> Any:
    """`value`, as JSON has it, as the annotation `kind` of a field: lists become tuples.

    Raises:
        ConfigError: it is of another type; the text has `name`.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return dataclass_from_json(value, kind, name)
    arguments = get_args(kind)
    if get_origin(kind) is UnionType and value is not None and NoneType in arguments:
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return field_from_json(value, kind, name)
    found = _tuples(value)
    if get_origin(kind) is Mapping and isinstance(found, dict):
        found = {key: _tuples(item) for key, item in found.items()}
    if not has_type(found, kind):
        raise ConfigError(f"{name} is {shorten(value)}; it must be {words_of(kind)}.")
    return found


def dataclass_from_json(
    data: Any,
    kind: type,
    name: str,
    *,
    optional: Collection[str] = (),
    known: Mapping[str, Any] | None = None,
) -> Any:
    """The dataclass `kind` from an object of JSON that has all its fields and no other.

    Args:
        optional: fields that may be missing and have their default then.
        known: fields that are read already, which `data` need not have.

    Raises:
        ConfigError: the text names the field.
    """
    fields = fields_from_json(data, kind, name, optional=optional, known=known or {})
    return kind(**fields)


def fields_from_json(
    data: Any,
    kind: type,
    name: str,
    *,
    optional: Collection[str] = (),
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of `dataclass_from_json`, by name."""
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is {shorten(data)}; it must be an object.")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(set(data) - set(names)):
        raise ConfigError(f"{name} has the unknown field {shorten(unknown[0])}.")
    found = dict(known)
    for field in names:
        if field in known:
            continue
        if field in data:
            found[field] = field_from_json(data[field], hints[field], f"{name}.{field}")
        elif field not in optional:
            raise ConfigError(f"{name} has no field {field!r}.")
    return found


def _tuples(value: Any) -> Any:
    """`value` with tuples where it has lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_text(value: str) -> bool:
    """False for halves of characters, which can be written nowhere."""
    try:
        value.encode()
    except UnicodeError:
        return False
    return True
