"""The exact public list: what is offered, returned and raised, and under which types."""

import ast
import re
import typing
from collections.abc import Callable, Iterator
from functools import cached_property
from inspect import getdoc, isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import condinst_infer
from condinst_infer import errors
from condinst_infer.contract.session import Session
from condinst_infer.runtimes.runner import Runner
from condinst_infer.video.sources import StreamSource

PUBLIC = {name: getattr(condinst_infer, name) for name in condinst_infer.__all__}
CLASSES = {name: value for name, value in PUBLIC.items() if isclass(value)}
PROTOCOLS = ("__call__", "__enter__", "__iter__", "__len__", "__next__")


class DataFrame:
    """Stands for pandas' class, which is not imported for this."""


class Detections:
    """In the place of supervision's, which only a type checker imports."""


def hints_of(what: Any) -> dict[str, Any]:
    # types that are imported for type checkers only
    names = {
        **PUBLIC,
        "DataFrame": DataFrame,
        "Detections": Detections,
        "Session": Session,
        "Runner": Runner,
    }
    return get_type_hints(what, localns={**names, "StreamSource": StreamSource})


def callables(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods of a class, and the functions behind its properties."""
    for name, member in vars(owner).items():
        if name.startswith("_") and name not in PROTOCOLS:
            continue
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, cached_property):
            member = member.func
        elif isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if isfunction(member):
            yield f"{owner.__name__}.{name}", member


def functions() -> dict[str, Callable[..., Any]]:
    """All public functions and methods."""
    found = {name: value for name, value in PUBLIC.items() if isfunction(value)}
    for owner in CLASSES.values():
        found |= dict(callables(owner))
    return found


def parts(hint: Any) -> Iterator[Any]:
    """A type and what it is made of: list[A | B] gives list[A | B], list, A | B, A and B."""
    yield hint
    if get_origin(hint) is not None:
        yield get_origin(hint)
    for part in get_args(hint):
        yield from parts(part)


def ours(hint: Any) -> set[str]:
    """The names of this package's classes in a type."""
    classes = [part for part in parts(hint) if isclass(part) and get_origin(part) is None]
    return {c.__name__ for c in classes if c.__module__.partition(".")[0] == "condinst_infer"}


def test_all_is_exactly_what_is_public() -> None:
    bound = {
        name
        for name, value in vars(condinst_infer).items()
        if not (name.startswith("_") or isinstance(value, ModuleType) or hasattr(typing, name))
    }
    public = bound | set(condinst_infer._LAZY) | {"__version__"}
    assert condinst_infer.__all__ == sorted(public)
    assert dir(condinst_infer) == condinst_infer.__all__


def test_type_checkers_are_told_where_each_lazy_name_is() -> None:
    told: dict[str, str | None] = {}
    for block in ast.parse(Path(condinst_infer.__file__).read_text()).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom)
                told |= {alias.asname or alias.name: line.module for alias in line.names}
    assert told == condinst_infer._LAZY


def test_a_name_that_is_not_public_does_not_exist() -> None:
    name = "no_such_name"
    with pytest.raises(AttributeError, match=name):
        getattr(condinst_infer, name)


@pytest.mark.parametrize("name", functions())
def test_what_a_function_returns_is_public_and_typed(name: str) -> None:
    returned = hints_of(functions()[name])["return"]
    assert returned is not Any and ours(returned) <= set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_the_types_of_fields_are_public(name: str) -> None:
    for field, hint in hints_of(CLASSES[name]).items():
        assert field.startswith("_") or (hint is not Any and ours(hint) <= set(CLASSES))


@pytest.mark.parametrize("name", functions())
def test_what_a_function_raises_is_public(name: str) -> None:
    _, _, raises = (getdoc(functions()[name]) or "").partition("Raises:")
    for error in re.findall(r"\b[A-Z]\w*Error\b", raises):
        assert issubclass(CLASSES[error], condinst_infer.CondInstError)


def test_every_error_is_public() -> None:
    known = {name for name, value in vars(errors).items() if isclass(value)}
    known = {name for name in known if issubclass(getattr(errors, name), Exception)}
    assert known == {name for name, value in CLASSES.items() if issubclass(value, Exception)}


def test_what_holds_arrays_has_a_short_text() -> None:
    holders = {
        name
        for name, owner in CLASSES.items()
        if any(part is np.ndarray for hint in hints_of(owner).values() for part in parts(hint))
    }
    assert holders == {
        "CroppedMask",
        "Frame",
        "Instance",
        "Instances",
        "PanopticSegmentation",
        "Polygon",
    }
    for name in [*holders, "FrameStream", "Pipeline"]:
        text = vars(CLASSES[name])["__repr__"]
        assert not hasattr(text, "__wrapped__"), f"{name} has the text of a dataclass"
