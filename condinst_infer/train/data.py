"""COCO instances JSON as records that have been checked, and their masks."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from condinst_infer.crop import Crop
from condinst_infer.errors import InputError

Size = tuple[int, int]  # (height, width)
TOLERANCE = 2.0  # pixels a polygon may pass the image's edge: annotation tools round outwards


class Annotation(NamedTuple):
    """One object of an image."""

    label: int  # contiguous class index
    segmentation: Any  # polygons, or one RLE with its size


class ImageRecord(NamedTuple):
    """One image and what is on it."""

    path: Path
    size: Size
    annotations: tuple[Annotation, ...]


class CocoData(NamedTuple):
    """The images of one annotation file that can be trained on."""

    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # ascending; the position is the label
    skipped: Mapping[str, int]  # reason -> how many annotations or images


def read_coco(annotations: str | Path, images: str | Path, *, keep_empty: bool = False) -> CocoData:
    """The data in a COCO instances file.

    Polygons, compressed and uncompressed RLE are taken. Left out, with a count in `skipped`:
    crowd regions, objects without area, and images without objects unless `keep_empty`.

    Args:
        annotations: the JSON file.
        images: folder that its `file_name` entries are relative to.

    Raises:
        InputError: not such a file, or inconsistent; the text names the annotation id.
    """
    file = Path(annotations)
    content = _content(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    objects: dict[int, list[Annotation]] = {image: [] for image in sizes}
    skipped: Counter[str] = Counter()
    for entry in content["annotations"]:
        if entry.get("iscrowd"):
            skipped["crowd regions"] += 1
            continue
        where = f"{file}: annotation {entry.get('id')}"
        try:
            size, label = sizes.get(entry["image_id"]), label_of.get(entry["category_id"])
            if size is None:
                raise InputError(f"{where} belongs to image {entry['image_id']}, which is missing.")
            if label is None:
                raise InputError(
                    f"{where} has category {entry['category_id']}, which the file does not list."
                )
            if _area(entry["segmentation"], size, where) > 0:
                objects[entry["image_id"]].append(Annotation(label, entry["segmentation"]))
            else:
                skipped["objects without area"] += 1
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where} can't be read: {error!r}.") from None
    records = []
    for image in content["images"]:
        if objects[image["id"]] or keep_empty:
            path = Path(images) / image["file_name"]
            records.append(ImageRecord(path, sizes[image["id"]], tuple(objects[image["id"]])))
        else:
            skipped["images without objects"] += 1
    if not records:
        raise InputError(f"{file} has no image to train on: {dict(skipped)}.")
    if not records[0].path.is_file():
        raise InputError(
            f"{records[0].path} does not exist; the image folder must be the one that file_name "
            f"in {file} is relative to."
        )
    names = tuple(str(category["name"]) for category in categories)
    return CocoData(tuple(records), names, tuple(label_of), skipped)


def crops_from_record(record: ImageRecord) -> list[Crop]:
    """The mask of each object, cut to its box."""
    return [_crop(_rle(a.segmentation, record.size)) for a in record.annotations]


def _crop(rle: Any) -> Crop:
    x, y, width, height = map(int, coco_mask.toBbox(rle))
    mask = coco_mask.decode(rle)[y : y + height, x : x + width]
    return Crop(x, y, np.ascontiguousarray(mask, bool))


def _content(file: Path) -> dict[str, Any]:
    """The JSON of an annotation file that has all parts of one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}.") from None
    for part, keys in (
        ("images", {"id", "file_name", "height", "width"}),
        ("annotations", set()),
        ("categories", {"id", "name"}),
    ):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} is no COCO instances file: it has no list of {part}.")
        for entry in entries:
            if not isinstance(entry, dict) or not keys <= set(entry):
                raise InputError(
                    f"{file}: an entry of {part} lacks {', '.join(sorted(keys))}: {entry!r:.80}."
                )
        ids = [entry["id"] for entry in entries if keys]
        if len(set(ids)) != len(ids):
            raise InputError(f"{file}: two {part} have the same id.")
    return content


def _area(segmentation: Any, size: Size, where: str) -> float:
    """Pixels of a segmentation, nearly; InputError where it can't belong to the image."""
    height, width = size
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise InputError(
                f"{where} has a mask of {segmentation['size']}, but its image is {list(size)} "
                "(height, width)."
            )
        return float(coco_mask.area(_rle(segmentation, size)))
    if not isinstance(segmentation, Sequence):
        raise InputError(f"{where} has neither polygons nor an RLE.")
    area = 0.0
    for polygon in segmentation:
        x, y = np.asarray(polygon, float).reshape(-1, 2).T
        low, high = min(x.min(), y.min()), max(x.max() - width, y.max() - height)
        if not (low >= -TOLERANCE and high <= TOLERANCE):  # also refuses NaN
            raise InputError(
                f"{where} lies outside its image of {width} x {height} pixels: x from {x.min():g} "
                f"to {x.max():g}, y from {y.min():g} to {y.max():g}."
            )
        area += 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
    return area


def _rle(segmentation: Any, size: Size) -> Any:
    """One compressed RLE."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, *size)
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects([p for p in segmentation if len(p) > 4], *size))
