"""COCO annotation files: their JSON and the masks of instances, checked."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from condinst_infer.config.field_types import words_of
from condinst_infer.config.model import Size
from condinst_infer.errors import InputError, require, shorten
from condinst_infer.results.rle import MAX_PIXELS, codes_from_text
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.paths import is_file, read_text_bytes

Rle = dict[str, Any]  # {"size": [H, W], "counts": str or bytes}

MAX_OUTLINE = 1 << 26  # pixels
_KEYS: dict[str, set[str]] = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": set(),
    "categories": {"id", "name"},
}


def read_instances(file: Path) -> dict[str, Any]:
    """The JSON of a COCO instances file: lists of images, annotations and categories.

    Images and categories have all their fields and ids of their own; annotations are not checked.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    content = read_parts(file, "instances")
    if has_segments(content):
        raise InputError(
            f"{file} is a COCO panoptic file and an instances file is needed; train a panoptic "
            "preset on it, such as condinst_panoptic_r50, or evaluate with --panoptic."
        )
    return content


def read_parts(file: Path, kind: str) -> dict[str, Any]:
    """The JSON of a COCO file of either kind, "instances" or "panoptic"; as `read_instances`."""
    content = read_json(file)
    for part, keys in _KEYS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} is no COCO {kind} file: it has no list of {part}.")
        for entry in entries if keys else ():
            if not isinstance(entry, dict) or not keys <= set(entry):
                raise InputError(
                    f"{file}: an entry of {part} lacks {', '.join(sorted(keys))}: {entry!r:.80}."
                )
            _check_entry(entry, part, file)
        ids = {entry["id"] for entry in entries if keys}
        if keys and len(ids) < max(1, len(entries)):
            reason = f"two {part} have the same id" if entries else f"it lists no {part}"
            raise InputError(f"{file} can't be used: {reason}.")
    return content


def _check_entry(entry: Mapping[str, Any], part: str, file: Path) -> None:
    """InputError for an id, a name or a size of a wrong type."""
    wanted = {"id": int, "file_name": str, "height": int, "width": int}
    for key, kind in wanted.items():
        if key in entry and type(entry[key]) is not kind:
            raise InputError(
                f"{file}: {key} of an entry of {part} is {shorten(entry[key])}; it must be "
                f"{words_of(kind)}."
            )
    height, width = entry.get("height", 1), entry.get("width", 1)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(
            f"{file}: image {entry['id']} has height {height} and width {width}; there must be 1 "
            f"to {MAX_PIXELS} pixels."
        )


def has_segments(content: Mapping[str, Any]) -> bool:
    """True if annotations are whole images with a list of segments, as in a panoptic file."""
    rows = content["annotations"]
    return bool(rows) and all(isinstance(row, dict) and "segments_info" in row for row in rows)


def read_json(file: Path) -> Any:
    """The JSON in a file.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    return parse_json(read_text_bytes(file), str(file), InputError)


def check_images(paths: Iterable[Path], file: Path) -> None:
    """InputError for the first image of the annotation `file` that is not there."""
    for path in paths:
        if not is_file(path):
            raise InputError(
                f"{path} does not exist; the image folder must be the one that file_name in {file} "
                "is relative to."
            )


def unusable(what: str, number: int, row: Any, error: Exception) -> InputError:
    """The error for row `number` of a list, counted from 1, that raised `error`."""
    has_id = isinstance(row, Mapping) and "id" in row
    name = shorten(row["id"]) if has_id else f"number {number}"
    reason = f"{error!s:.400}" if isinstance(error, ValueError) else f"{error!r:.200}"
    return InputError(f"{what} {name} can't be used: {reason}.")


def rle_from_segmentation(segmentation: Any, size: Size) -> Rle:
    """The compressed RLE of polygons or of an RLE of either kind.

    Raises:
        ValueError, TypeError, KeyError: it is neither, or belongs to an image of another size.
    """
    coco_mask = coco_library().mask
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            given = shorten(segmentation["size"])
            raise ValueError(f"its mask is {given}, its image is {list(size)}")
        counts, compressed = segmentation["counts"], not isinstance(segmentation["counts"], list)
        # with other runs faster-coco-eval crashes or never comes back
        if compressed:
            if not isinstance(counts, str | bytes):
                raise TypeError(f"its counts are {shorten(counts)}, neither a text nor a list")
            codes_from_text(counts)
            native = require("faster_coco_eval.mask_api_new_cpp", "eval")
            counts = native.toUncompressedRLE([segmentation])[0]["counts"]
        whole = all(isinstance(count, int | np.integer) for count in counts)
        if not whole or sum(counts) != size[0] * size[1] or min(counts) < 0:
            raise ValueError(f"the runs of its mask don't add up to {size[0]} x {size[1]}")
        return segmentation if compressed else coco_mask.frPyObjects(segmentation, *size)
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    for polygon in polygons:
        _check_outline(polygon)
    if not polygons:  # two corners enclose nothing
        return coco_mask.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def _check_outline(polygon: Any) -> None:
    """ValueError for a polygon whose outline, which faster-coco-eval walks, fills the memory."""
    corners = np.asarray(polygon, float).reshape(-1, 2)
    length = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum()
    if not length <= MAX_OUTLINE:  # also where it is not a number
        raise ValueError(f"its outline has {length:g} pixels; there may be {MAX_OUTLINE}")


def coco_library() -> ModuleType:
    """faster-coco-eval; MissingExtraError without it."""
    return require("faster_coco_eval", "eval")
