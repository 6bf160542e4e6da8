"""COCO annotations as records that have been checked, and their masks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import Size
from condinst_infer.datasets.coco import (
    Rle,
    coco_library,
    read_instances,
    rle_from_segmentation,
    unusable,
)
from condinst_infer.datasets.coco_panoptic import (
    PanopticImage,
    id_map,
    read_panoptic,
    relabel,
)
from condinst_infer.errors import InputError, shorten
from condinst_infer.results.crop import CroppedMask

TOLERANCE = 2.0  # pixels a polygon may pass the image's edge: annotation tools round outwards


class Annotation(NamedTuple):
    """One object of an image."""

    label: int  # contiguous class index
    segmentation: Any  # polygons, or one RLE with its size; panoptic: the id in the PNG


class ImageRecord(NamedTuple):
    """One image and what is on it."""

    path: Path
    size: Size
    annotations: tuple[Annotation, ...]
    panoptic: PanopticImage | None = None


class CocoData(NamedTuple):
    """The images of one annotation file that can be trained on."""

    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # ascending; the position is the label
    skipped: Mapping[str, int]  # reason -> how many annotations or images
    stuff_names: tuple[str, ...] = ()
    stuff_ids: tuple[int, ...] = ()  # ascending; the position plus one is the channel


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
    content = read_instances(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    objects: dict[int, list[Annotation]] = {image: [] for image in sizes}
    skipped: Counter[str] = Counter()
    for number, entry in enumerate(content["annotations"], 1):
        try:
            if entry.get("iscrowd"):
                skipped["crowd regions"] += 1
                continue
            image, category = entry["image_id"], entry["category_id"]
            if image not in sizes or category not in label_of:
                raise ValueError(
                    f"image {shorten(image)} or category {shorten(category)} is not in the file"
                )
            if _area(entry["segmentation"], sizes[image]) > 0:
                annotation = Annotation(label_of[category], entry["segmentation"])
                objects[image].append(annotation)
            else:
                skipped["objects without area"] += 1
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unusable(f"{file}: annotation", number, entry, error) from None
    records = []
    for image in content["images"]:
        if objects[image["id"]] or keep_empty:
            path = Path(images) / image["file_name"]
            records.append(ImageRecord(path, sizes[image["id"]], tuple(objects[image["id"]])))
        else:
            skipped["images without objects"] += 1
    if not records:
        raise InputError(f"{file} has no image to train on: {dict(skipped)}.")
    names = tuple(str(category["name"]) for category in categories)
    return CocoData(tuple(records), names, tuple(label_of), skipped)


def read_coco_panoptic(annotations: str | Path, images: str | Path) -> CocoData:
    """The data in a COCO panoptic file; its PNGs lie in the folder of its name.

    Things become objects, stuff becomes channels of the semantic branch. Crowds are neither.
    Images without things are kept: they show stuff.

    Args:
        annotations: the JSON file.
        images: folder that the file names of the images are relative to.

    Raises:
        InputError: not such a file, or inconsistent; the text names image and segment.
    """
    truth = read_panoptic(annotations)
    things = [c for c in truth.categories.values() if c.is_thing]
    stuff = [c for c in truth.categories.values() if not c.is_thing]
    if not things or not stuff:
        lacking = "things" if stuff else "stuff"
        raise InputError(f"{annotations} has no category of {lacking}; a panoptic model has both.")
    label_of = {category.id: label for label, category in enumerate(things)}
    skipped: Counter[str] = Counter()
    records = []
    for image in truth.images:
        skipped["crowd regions"] += sum(segment.crowd for segment in image.segments)
        objects = tuple(
            Annotation(label_of[segment.category], segment.id)
            for segment in image.segments
            if segment.category in label_of and not segment.crowd
        )
        path = Path(images) / image.file_name
        records.append(ImageRecord(path, image.size, objects, image))
    return CocoData(
        tuple(records),
        tuple(category.name for category in things),
        tuple(label_of),
        +skipped,
        tuple(category.name for category in stuff),
        tuple(category.id for category in stuff),
    )


def owners_from_record(record: ImageRecord, stuff_ids: Sequence[int]) -> np.ndarray:
    """The object or stuff channel that owns each pixel of a panoptic record, uint16 [H, W].

    1 to G is an object, G + c the channel c of the semantic branch, and 0 is void or a crowd.
    """
    assert record.panoptic is not None
    objects = {a.segmentation: number for number, a in enumerate(record.annotations, 1)}
    channels = {id_: channel for channel, id_ in enumerate(stuff_ids, len(objects) + 1)}
    owners = {0: 0}
    for segment in record.panoptic.segments:
        owner = objects.get(segment.id) or channels.get(segment.category, 0)
        owners[segment.id] = 0 if segment.crowd else owner
    return relabel(id_map(record.panoptic), owners)


def crops_from_record(record: ImageRecord) -> list[CroppedMask]:
    """The mask of each object, cut to its box."""
    return [
        crop_from_rle(rle_from_segmentation(a.segmentation, record.size))
        for a in record.annotations
    ]


def crop_from_rle(rle: Rle) -> CroppedMask:
    """The mask in an RLE, cut to its box."""
    coco_mask = coco_library().mask
    x, y, width, height = map(int, coco_mask.toBbox(rle))
    mask = coco_mask.decode(rle)[y : y + height, x : x + width]
    return CroppedMask(x, y, np.ascontiguousarray(mask, bool))


def _area(segmentation: Any, size: Size) -> float:
    """Pixels of a segmentation, nearly; ValueError where it can't belong to the image."""
    height, width = size
    if isinstance(segmentation, dict):
        return float(coco_library().mask.area(rle_from_segmentation(segmentation, size)))
    area = 0.0
    for polygon in segmentation:
        x, y = np.asarray(polygon, float).reshape(-1, 2).T
        low, high = min(x.min(), y.min()), max(x.max() - width, y.max() - height)
        if not (low >= -TOLERANCE and high <= TOLERANCE):  # also refuses NaN
            raise ValueError(
                f"it lies outside its image of {width} x {height} pixels: x from {x.min():g} to "
                f"{x.max():g}, y from {y.min():g} to {y.max():g}"
            )
        area += 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
    return area
