"""Results as JSON: the schema, and its checks.

python -m condinst_infer.results.json_format > export/schema/results.json
"""

import json
import sys
from collections.abc import Mapping
from os import PathLike
from typing import Any

from condinst_infer.errors import InputError
from condinst_infer.results.rle import MAX_PIXELS
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.paths import read_bytes

Schema = Mapping[str, Any]

_COUNT = {"type": "integer", "minimum": 0}
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}
_INT32 = 2**31 - 1
_COORDINATE = {"type": "number", "minimum": -_INT32, "maximum": _INT32}
_BOX = {"type": "array", "items": _COORDINATE, "minItems": 4, "maxItems": 4}
_SIZE = {
    "description": "height and width of the image in pixels",
    "type": "array",
    "items": {"type": "integer", "minimum": 1},
    "minItems": 2,
    "maxItems": 2,
}
_RLE = {
    "description": "COCO RLE of the mask in the whole image",
    "type": "object",
    "properties": {"size": _SIZE, "counts": {"type": "string"}},
    "required": ["size", "counts"],
}


def _list(items: Schema, description: str) -> Schema:
    return {"description": description, "type": "array", "items": items}


def _object(description: str, properties: Mapping[str, Schema]) -> Schema:
    return {
        "description": description,
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
    }


INSTANCES = _object(
    "The K instances of one image, best score first",
    {
        "image_size": _SIZE,
        "boxes": _list(_BOX, "K boxes: x1, y1, x2, y2 in pixels of the image"),
        "scores": _list(_SCORE, "K scores"),
        "labels": _list(_COUNT, "K indices into class_names"),
        "names": _list({"type": "string"}, "K class names"),
        "masks": _list(_RLE, "K masks"),
        "class_names": _list({"type": "string"}, "all classes of the model"),
        "category_ids": _list({"type": "integer"}, "the id of each class in its data set"),
    },
)
PANOPTIC = _object(
    "The segments of one image: things, best score first, then stuff; they don't overlap",
    {
        "image_size": _SIZE,
        "segments": _list(
            _object(
                "A thing, or all of the image that shows one kind of stuff",
                {
                    "id": {"type": "integer", "minimum": 1, "maximum": _INT32},
                    "category_id": {"type": "integer"},
                    "name": {"type": "string"},
                    "is_thing": {"type": "boolean"},
                    "area": _COUNT,
                    "box": _BOX,
                    "score": {**_SCORE, "type": ["number", "null"]},
                    "mask": _RLE,
                },
            ),
            "the segments",
        ),
    },
)
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A result of condinst-infer: instances, or a panoptic segmentation",
    "anyOf": [INSTANCES, PANOPTIC],
}
_TYPES = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


def parse(source: str | bytes | PathLike[str], schema: Schema, what: str) -> dict[str, Any]:
    """The object in a JSON text, or in the file of a path.

    Raises:
        InputError: the file can't be read, or the text does not follow `schema`; the message names
            the field.
    """
    text = read_bytes(source) if isinstance(source, PathLike) else source
    data = parse_json(text, f"the JSON of {what}", InputError)
    _check(data, schema, what)
    height, width = data["image_size"]
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{what}.image_size is {data['image_size']}; there may be {MAX_PIXELS} pixels."
        )
    return data


def _check(value: Any, schema: Schema, field: str) -> None:
    """InputError if `value` does not follow the part of JSON Schema that is used above."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = any(isinstance(value, _TYPES[name]) for name in types)
    if not fits or (isinstance(value, bool) and "boolean" not in types):
        raise InputError(f"{field} is {_shown(value)}; it must be of type {' or '.join(types)}.")
    if isinstance(value, dict):
        for name in schema["required"]:
            if name not in value:
                raise InputError(f"{field} has no field {name!r}.")
            _check(value[name], schema["properties"][name], f"{field}.{name}")
    elif isinstance(value, list):
        if "minItems" in schema and len(value) != schema["minItems"]:
            raise InputError(
                f"{field} has {len(value)} entries; it must have {schema['minItems']}."
            )
        for k, item in enumerate(value):
            _check(item, schema["items"], f"{field}[{k}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum", -float("inf")), schema.get("maximum", float("inf"))
        if not low <= value <= high:  # also refuses NaN
            raise InputError(f"{field} is {_shown(value)}; it must be from {low} to {high}.")


def _shown(value: Any) -> str:
    """`value` as JSON, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


if __name__ == "__main__":
    json.dump(SCHEMA, sys.stdout, indent=2)
    print()
