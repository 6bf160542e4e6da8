"""The metadata of a model file as a JSON schema, made from its dataclasses.

python -m condinst_infer.contract.metadata_schema > export/schema/metadata.json
"""

import ast
import dataclasses
import inspect
import json
import sys
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from condinst_infer.config.model import SECTIONS, CondInstConfig
from condinst_infer.config.validation import CHOICES
from condinst_infer.contract.metadata import CONTRACT_VERSION, FIELD_CHOICES, KEY, LATER, Metadata

Schema = dict[str, Any]

DRAFT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def object_schema(kind: type, *, required: Collection[str] | None = None) -> Schema:
    """The schema of a dataclass as JSON: fields, types, and the comments beside the fields.

    Args:
        required: fields that must be there; None is all. Others have their default.
    """
    hints, comments = get_type_hints(kind), _comments(kind)
    properties: dict[str, Schema] = {}
    for f in dataclasses.fields(kind):
        schema = type_schema(hints[f.name])
        if f.name in CHOICES:
            schema["enum"] = list(CHOICES[f.name])
        if comment := comments.get(f.name):
            schema["description"] = comment
        if required is not None and f.name not in required:
            schema |= _default(f)
        properties[f.name] = schema
    summary = (inspect.getdoc(kind) or "").partition("\n")[0]
    return {
        "description": summary,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if required is None or name in required],
        "additionalProperties": False,
    }


def type_schema(kind: Any) -> Schema:
    """The schema of the annotation `kind` of a field."""
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return object_schema(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return {"anyOf": [type_schema(argument) for argument in arguments]}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": type_schema(arguments[1])}
    if origin is not tuple:
        raise TypeError(f"there is no schema for {kind}")
    schema = {"type": "array", "items": type_schema(arguments[0])}
    length = len(arguments)
    return schema if arguments[-1] is ... else {**schema, "minItems": length, "maxItems": length}


def _default(f: "dataclasses.Field[Any]") -> Schema:
    """The default of a field, if it is a plain value."""
    if f.default is dataclasses.MISSING:
        return {}
    return {"default": list(f.default) if isinstance(f.default, tuple) else f.default}


def _comments(kind: type) -> dict[str, str]:
    """The comment behind each field of a dataclass, by name."""
    source = inspect.getsource(kind)
    lines, comments = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            line = lines[(node.end_lineno or 1) - 1].encode()
            rest = line[node.end_col_offset or 0 :].decode().strip()
            if rest.startswith("#"):
                comment = rest.removeprefix("#").strip()
                comments[node.target.id] = comment.replace("None", "null")
    return comments


def metadata_schema() -> Schema:
    """The schema of the text `metadata_props["condinst"]`.

    A section of an older file may lack fields, and such a file has no section `panoptic`.
    """
    sections = {name: object_schema(kind, required=()) for name, kind in SECTIONS.items()}
    fields = [f.name for f in dataclasses.fields(CondInstConfig) if f.name != "panoptic"]
    config = object_schema(CondInstConfig, required=fields)
    config["properties"] |= sections
    fields = [f.name for f in dataclasses.fields(Metadata) if f.name not in LATER]
    schema = object_schema(Metadata, required=fields)
    properties = schema["properties"]
    properties["config"] = config
    properties["graph"]["enum"] = ["full", "detector"]
    for name, choices in FIELD_CHOICES.items():
        properties[name]["enum"] = list(choices)
    properties["contract"]["const"] = CONTRACT_VERSION
    return {**DRAFT, "title": f'The metadata_props["{KEY}"] of a model file', **schema}


if __name__ == "__main__":
    json.dump(metadata_schema(), sys.stdout, indent=2)
    print()
