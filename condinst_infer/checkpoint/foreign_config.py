"""Configuration files of AdelaiDet and mmdetection: read, and checked against their defaults."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from condinst_infer.config.bounds import MAX_TEXT
from condinst_infer.config.field_types import has_type, words_of
from condinst_infer.errors import ConfigError, require, shorten
from condinst_infer.system.json_text import MAX_DEPTH, parse_json
from condinst_infer.system.paths import read_text_bytes

MAX_BYTES = 250_000  # of a file; PyYAML takes a second for it
MAX_BASES = 20  # files below each other
MAX_VALUES = 100_000  # with aliases, a small YAML file can hold more than fits into memory
_WHOLE = range(-1, 1_000_001)  # whole numbers that a setting may have


def read_foreign_config(path: Path) -> dict[str, Any]:
    """A YAML or JSON configuration with its `_BASE_` files below it.

    Raises:
        InputError: a file can't be read.
        ConfigError: it is no configuration, or its `_BASE_` files lead in a circle.
    """
    configs: list[dict[str, Any]] = []
    while True:
        cfg = _read_one(path)
        base = cfg.pop("_BASE_", None)
        configs.append(cfg)
        if base is None:
            break
        if not has_type(base, str) or len(base) > MAX_TEXT:
            raise ConfigError(f"{path}: _BASE_ is {shorten(base)}; it must be the name of a file.")
        if len(configs) > MAX_BASES:
            raise ConfigError(f"{path}: more than {MAX_BASES} files follow by _BASE_.")
        path = path.parent / base
    merged = configs.pop()
    for above in reversed(configs):
        merged = _merge(merged, above)
    return merged


def check_types(
    cfg: Mapping[str, Any], defaults: Mapping[str, Any], free: Collection[str] = ()
) -> None:
    """ConfigError for a setting of another type than its default.

    Args:
        cfg: settings with dotted keys; those that `defaults` lacks are not looked at.
        free: keys whose values are compared elsewhere.
    """
    for key, default in defaults.items():
        if key in free:
            continue
        value, items = cfg[key], [cfg[key]]
        if isinstance(default, list):
            default, items = default[0], value
            if not isinstance(value, list | tuple) or not value:
                raise ConfigError(f"{key} is {shorten(value)}; it must be a list.")
        for item in items:
            _check_type(key, item, type(default))


def _check_type(key: str, value: Any, kind: Any) -> None:
    if kind is type(None):
        kind = str | None
    fits = has_type(value, kind)
    if kind is float and isinstance(value, str):  # PyYAML reads 1e-2 as text
        try:
            fits = has_type(float(value), float)
        except ValueError:
            fits = False
    if not fits:
        raise ConfigError(f"{key} is {shorten(value)}; it must be {words_of(kind)}.")
    if kind is int and value not in _WHOLE:
        raise ConfigError(
            f"{key} is {shorten(value)}; it must be from {_WHOLE.start} to {_WHOLE.stop - 1}."
        )


def _read_one(path: Path) -> dict[str, Any]:
    """The configuration in one file."""
    text = read_text_bytes(path, max_bytes=MAX_BYTES)
    if path.suffix == ".json":
        cfg = parse_json(text, str(path), ConfigError)
    else:
        cfg = _parse_yaml(text, path)
    if not isinstance(cfg, dict):
        raise ConfigError(f"{path} holds no configuration.")
    return cfg


def _parse_yaml(text: bytes, path: Path) -> Any:
    yaml = require("yaml", "export")
    try:
        cfg = yaml.safe_load(text)
    except Exception as error:  # PyYAML ends in errors of many kinds: of tags, numbers and dates
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConfigError(f"{path} is not a YAML or JSON file: {reason:.200}") from None
    rest, count = [(cfg, 1)], 0
    while rest:
        value, depth = rest.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ConfigError(
                f"{path} holds no configuration: more than {MAX_VALUES} values, or nested deeper "
                f"than {MAX_DEPTH}."
            )
        if isinstance(value, dict | list | set | tuple):
            items = value.values() if isinstance(value, dict) else value
            rest += [(item, depth + 1) for item in items]
    return cfg


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged
