"""COCO panoptic files: their JSON and their PNGs, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from condinst_infer.config.model import Size
from condinst_infer.datasets.coco import has_segments, read_json, read_parts, unusable
from condinst_infer.errors import InputError, shorten
from condinst_infer.system.paths import is_file

ID_BITS = 24  # of a segment id: R + 256 G + 65536 B; 0 is void


class Category(NamedTuple):
    """A class of things, or a kind of stuff."""

    id: int
    name: str
    is_thing: bool


class TruthSegment(NamedTuple):
    """One thing, or all stuff of one kind, in one image."""

    id: int  # in the PNG
    category: int
    crowd: bool  # a group whose members are not told apart


class PanopticImage(NamedTuple):
    """One image and the segments that its PNG shows."""

    id: int
    file_name: str  # of the photograph
    size: Size
    png: Path
    segments: tuple[TruthSegment, ...]


class PanopticTruth(NamedTuple):
    """Content of a COCO panoptic file, checked; PNGs are checked as they are read."""

    file: Path
    images: tuple[PanopticImage, ...]  # those with an annotation
    categories: Mapping[int, Category]  # by id, ascending


def read_panoptic(
    annotations: str | Path, pngs: str | Path | None = None, *, limit: int | None = None
) -> PanopticTruth:
    """The first `limit` annotated images of a COCO panoptic file, or all.

    Args:
        annotations: the JSON file.
        pngs: folder of the PNGs; by default it is named as the JSON file without its suffix.
        limit: None takes all.

    Raises:
        InputError: not such a file, or inconsistent; the text names image and segment.
    """
    file = Path(annotations)
    content = read_parts(file, "panoptic")
    if content["annotations"] and not has_segments(content):
        raise InputError(
            f"{file} is no COCO panoptic file: its annotations have no segments_info. A panoptic "
            "model needs such a file and its folder of PNGs."
        )
    categories = {}
    for entry in sorted(content["categories"], key=lambda category: category["id"]):
        if entry.get("isthing") not in (0, 1):
            raise InputError(
                f"{file}: category {entry['id']} ({entry['name']}) has no isthing of 0 or 1."
            )
        categories[entry["id"]] = Category(entry["id"], str(entry["name"]), bool(entry["isthing"]))
    photographs = {
        entry["id"]: (entry["file_name"], (entry["height"], entry["width"]))
        for entry in content["images"]
    }
    empty = PanopticTruth(file, (), categories)
    found = _read_annotations(file, content["annotations"], pngs, empty, photographs)
    images = tuple(found[id_] for id_ in photographs if id_ in found)[:limit]
    if not images:
        raise InputError(f"{file} can't be used: it has no annotation.")
    return empty._replace(images=images)


def read_results(file: str | Path, truth: PanopticTruth) -> PanopticTruth:
    """Read panoptic results for the images of `truth` from a file in COCO's result format.

    That is a panoptic file of which only `annotations` is read, with its PNGs beside it.

    Raises:
        InputError: not such a file, inconsistent, or without an image of `truth`.
    """
    file = Path(file)
    content = read_json(file)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not has_segments({"annotations": rows}):
        raise InputError(f"{file} is no COCO panoptic result: it has no annotations with segments.")
    photographs = {image.id: (image.file_name, image.size) for image in truth.images}
    found = _read_annotations(file, rows, None, truth, photographs, others=True)
    for image in truth.images:
        if image.id not in found:
            raise InputError(f"{file} has nothing on image {image.id} ({image.file_name}).")
    return PanopticTruth(file, tuple(found[image.id] for image in truth.images), truth.categories)


def _read_annotations(
    file: Path,
    rows: list[dict[str, Any]],
    pngs: str | Path | None,
    truth: PanopticTruth,
    photographs: Mapping[int, tuple[str, Size]],
    *,
    others: bool = False,
) -> dict[int, PanopticImage]:
    """The images that `rows` are about, by id; `others` than `photographs` are left out."""
    folder = file.with_suffix("") if pngs is None else Path(pngs)
    found: dict[int, PanopticImage] = {}
    for number, row in enumerate(rows, 1):
        try:
            id_ = row["image_id"]
            if id_ not in photographs:
                if others:
                    continue
                raise ValueError("its image is not in the file")
            if id_ in found:
                raise ValueError("its image has two")
            segments = _segments(row["segments_info"], truth)
            found[id_] = PanopticImage(id_, *photographs[id_], folder / row["file_name"], segments)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            named = {"id": row["image_id"]} if "image_id" in row else row
            raise unusable(f"{file}: the annotation of image", number, named, error) from None
    return found


def _segments(rows: Any, truth: PanopticTruth) -> tuple[TruthSegment, ...]:
    """The segments of one image; ValueError names the one that can't be used."""
    segments: dict[int, TruthSegment] = {}
    for row in rows:
        id_, category = row["id"], row["category_id"]
        if type(id_) is not int or not 0 < id_ < 1 << ID_BITS:
            raise ValueError(f"segment {shorten(id_)} has no id from 1 to {(1 << ID_BITS) - 1}")
        if category not in truth.categories:
            raise ValueError(f"segment {id_} has category {shorten(category)}, not in {truth.file}")
        if id_ in segments:
            raise ValueError(f"two segments have the id {id_}")
        segments[id_] = TruthSegment(id_, category, bool(row.get("iscrowd", 0)))
    return tuple(segments.values())


def id_map(image: PanopticImage) -> np.ndarray:
    """The segment id of each pixel, int32 [H, W], 0 where there is none.

    Raises:
        InputError: the PNG is not there, or shows other segments than its JSON lists.
    """
    what = f"image {image.id} ({image.file_name})"
    ids = _pixels(image, what)
    shown = set(np.unique(ids.ravel()[run_starts(ids)]).tolist()) - {0}
    listed = {segment.id for segment in image.segments}
    for id_ in sorted(shown - listed):
        count = np.count_nonzero(ids == id_)
        raise InputError(
            f"{image.png}: segment {id_}, {count} pixels, is not in the JSON's list for {what}."
        )
    for id_ in sorted(listed - shown):
        raise InputError(
            f"{image.png}: segment {id_}, which the JSON lists for {what}, has no pixel."
        )
    return ids


def check_png(image: PanopticImage) -> None:
    """InputError if the PNG is not there."""
    if not is_file(image.png):
        raise InputError(
            f"{image.png} does not exist; it has the segments of image {image.id} "
            f"({image.file_name}). The folder of PNGs is named as the JSON file without .json; "
            "`condinst eval` takes another one by --pngs."
        )


def _pixels(image: PanopticImage, what: str) -> np.ndarray:
    """The ids in the PNG, int32 [H, W]."""
    height, width = image.size
    check_png(image)
    try:
        with Image.open(image.png, formats=("PNG",)) as png:
            if png.size != (width, height):
                raise InputError(
                    f"{image.png} is {png.size[0]} x {png.size[1]} pixels, but the JSON says "
                    f"{width} x {height} of {what}."
                )
            if png.mode != "RGB":
                raise InputError(
                    f"{image.png} is no COCO panoptic PNG: it is {png.mode}, not 8-bit RGB."
                )
            rgb = np.asarray(png)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{image.png} can't be read: {error}.") from None
    ids = np.zeros((height, width, 4), np.uint8)
    ids[:, :, :3] = rgb
    return ids.view("<i4")[:, :, 0]  # R is the lowest byte


def run_starts(ids: np.ndarray) -> np.ndarray:
    """Positions, row by row in `ids` [H, W], of each value that differs from the one before."""
    flat = ids.ravel()
    return np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))


def relabel(ids: np.ndarray, new: Mapping[int, int]) -> np.ndarray:
    """`ids` [H, W] with each value replaced by its `new` one, uint16 [H, W]."""
    starts = run_starts(ids)  # some thousands: looking them up costs a twentieth of all pixels
    keys = np.array(sorted(new))
    values = np.array([new[key] for key in keys.tolist()], np.uint16)
    at = np.searchsorted(keys, ids.ravel()[starts])
    return np.repeat(values[at], np.diff(starts, append=ids.size)).reshape(ids.shape)
