"""Parameters of a request, in the query or in the fields of a form."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from condinst_infer.errors import did_you_mean
from condinst_infer.processing.options import classes_from_text
from condinst_infer.serving.http.failures import Rejection

QUERY, FORM = "query", "form"
_LONGEST_SHOWN = 60  # characters of a name or value in a message
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,12}")
_OUTPUTS = ("json", "overlay")
_DEFAULT = "; without it, what the model says"


class Given(NamedTuple):
    """A parameter as a request holds it."""

    name: str
    value: str
    place: str  # QUERY or FORM


class Parameter(NamedTuple):
    """A parameter of a path: how its text is read, and what the interface says of it."""

    parse: Callable[[str], Any]  # ValueError, with the end of a sentence
    schema: Mapping[str, Any]
    description: str


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or len(text) > _LONGEST_SHOWN:
        raise ValueError("it must be a number")
    return float(text)


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("it must be a whole number of at most 12 digits")
    return int(text)


def _output(text: str) -> str:
    if text not in _OUTPUTS:
        raise ValueError("it must be 'json' or 'overlay'")
    return text


def _classes(text: str) -> tuple[int | str, ...]:
    return tuple(classes_from_text(text))


_FROM_0_TO_1 = {"type": "number", "minimum": 0, "maximum": 1}
_OUTPUT = Parameter(
    _output,
    {"type": "string", "enum": list(_OUTPUTS)},
    "an overlay is a PNG; without it, what Accept asks for, else JSON",
)
PREDICT: Mapping[str, Parameter] = {
    "output": _OUTPUT,
    "score_threshold": Parameter(_number, _FROM_0_TO_1, "lowest score, 0 to 1"),
    "max_detections": Parameter(_whole, {"type": "integer", "minimum": 1}, "most instances"),
    "classes": Parameter(_classes, {"type": "string"}, "names or numbers, with commas"),
}
PANOPTIC: Mapping[str, Parameter] = {
    "output": _OUTPUT,
    "instance_threshold": Parameter(
        _number, _FROM_0_TO_1, f"lowest score of an instance, 0 to 1{_DEFAULT}"
    ),
    "overlap_threshold": Parameter(
        _number,
        _FROM_0_TO_1,
        f"an instance that loses more of its area is dropped{_DEFAULT}",
    ),
    "stuff_area_limit": Parameter(
        _whole, {"type": "integer", "minimum": 0}, f"smaller stuff is void, pixels{_DEFAULT}"
    ),
}


def given_in_query(query: bytes) -> list[Given]:
    """The parameters in the query of a URL; what is no UTF-8 has U+FFFD in its place."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return [Given(name, value, QUERY) for name, value in pairs]


def read_parameters(known: Mapping[str, Parameter], given: Sequence[Given]) -> dict[str, Any]:
    """The values of the parameters of a request.

    Args:
        known: PREDICT or PANOPTIC.
        given: in the order of the request.

    Raises:
        Rejection: one is unknown, given twice, or no value of its kind; ConfigError likewise.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, text, place in given:
        if name not in known:
            hint = did_you_mean(name[:_LONGEST_SHOWN], known)
            raise Rejection(422, f"there is no parameter {shown(name)} here{hint}")
        if name in places:
            both = f", in the {QUERY} and in the {FORM}" if place != places[name] else ""
            raise Rejection(422, f"{name} is given twice{both}; give it once.")
        places[name] = place
        try:
            values[name] = known[name].parse(text.strip(" \t\r\n"))
        except ValueError as error:
            raise Rejection(422, f"{name} is {shown(text)}; {error}.") from None
    return values


def documented(known: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """The parameters as OpenAPI describes those of a query."""
    return [
        {"name": name, "in": "query", "description": one.description, "schema": one.schema}
        for name, one in known.items()
    ]


def shown(text: str) -> str:
    """A name or value for a message: in quotes, on one line, its end left out if it is long."""
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
