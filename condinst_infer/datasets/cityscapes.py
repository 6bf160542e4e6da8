"""Cityscapes' folders of images and ground truth as COCO files.

The format is described by the data set's authors: github.com/mcordts/cityscapesScripts.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from condinst_infer.config.model import Size
from condinst_infer.config.presets import preset
from condinst_infer.datasets.coco import read_json, unusable
from condinst_infer.errors import InputError, shorten
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.panoptic_png import write_id_png
from condinst_infer.results.rle import rle_from_crop
from condinst_infer.system.outputs import write_json
from condinst_infer.system.paths import Unreadable, files_below, is_file, is_folder
from condinst_infer.system.progress import progress

IMAGE_SUFFIX = "_leftImg8bit.png"
LABELS = (  # by id; "license plate" has -1: its polygons are not drawn
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,"
    "parking,rail track,building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,"
    "traffic sign,vegetation,terrain,sky,person,rider,car,truck,bus,caravan,trailer,train,"
    "motorcycle,bicycle"
).split(",")
ID_OF = {name: id_ for id_, name in enumerate(LABELS)} | {"license plate": -1}
FIRST_COUNTED = ID_OF["person"]  # from here on every object has a number of its own
PER_LABEL = 1000  # number n of a label has the id 1000 * label + n, a group the label's own
_CONFIG = preset("condinst_panoptic_cityscapes_r50")
THINGS = dict(zip(_CONFIG.category_ids, _CONFIG.class_names, strict=True))
STUFF = dict(zip(_CONFIG.panoptic.stuff_ids, _CONFIG.panoptic.stuff_names, strict=True))


class CityscapesSegment(NamedTuple):
    """One thing, one group of things, or all stuff of one kind in an image."""

    id: int  # as in the ground truth: 1000 * label + n, or the label
    label: int
    crowd: bool  # a group whose members are not told apart
    crop: CroppedMask


class SplitSummary(NamedTuple):
    """Files and counts of one converted split."""

    instances: Path
    panoptic: Path | None
    photographs: Path  # the folder that file names are relative to
    images: int
    objects: int
    groups: int


def convert(
    root: str | Path, output: str | Path, split: str, *, panoptic: bool = False
) -> SplitSummary:
    """Write OUTPUT/instances_SPLIT.json, a COCO instances file of the eight classes with masks.

    Groups are crowds; everything else is left out. File names are relative to
    ROOT/leftImg8bit/SPLIT, category ids are the official label ids.

    Args:
        root: the folder with leftImg8bit and gtFine. Of an image's ground truth
            *_gtFine_instanceIds.png is read, or *_gtFine_polygons.json where that is missing.
        output: folder of the results, made if missing.
        split: the folder "train", "val" or "test".
        panoptic: also write panoptic_SPLIT.json and its folder of PNGs, panoptic_SPLIT: 8 things
            and 11 kinds of stuff.

    Raises:
        InputError: a folder, an image or its ground truth is missing or damaged; the text names
            the file.
    """
    folder = Path(root) / "leftImg8bit" / split
    photographs = _photographs(folder)
    if not photographs:
        raise InputError(
            f"{folder} has no CITY/*{IMAGE_SUFFIX}; the folder to convert is the one that holds "
            "leftImg8bit and gtFine."
        )
    output, images, rows, merged = Path(output), [], [], []
    pngs = output / f"panoptic_{split}"
    for id_, path in enumerate(progress(photographs, "image"), 1):
        city, name = path.parent.name, path.name.removesuffix(IMAGE_SUFFIX)
        ids, source = _ids(Path(root) / "gtFine" / split / city / f"{name}_gtFine", path)
        file_name = f"{city}/{path.name}"
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": id_, "file_name": file_name, **size})
        segments = list(_segments(ids, source))
        for segment in segments:
            if segment.label in THINGS:
                rows.append({"id": len(rows) + 1, "image_id": id_, **_annotation(segment, ids)})
        if panoptic:
            png = f"{city}/{name}_gtFine_panoptic.png"
            _write_ids(pngs / png, ids, segments)
            infos = [{"id": s.id, **_info(s)} for s in segments]
            merged.append({"image_id": id_, "file_name": png, "segments_info": infos})
    instances = output / f"instances_{split}.json"
    _write(instances, images, rows, _categories(THINGS))
    if panoptic:
        _write(pngs.with_suffix(".json"), images, merged, _categories(THINGS | STUFF))
    groups = sum(row["iscrowd"] for row in rows)
    return SplitSummary(
        instances=instances,
        panoptic=pngs.with_suffix(".json") if panoptic else None,
        photographs=folder,
        images=len(images),
        objects=len(rows) - groups,
        groups=groups,
    )


def _photographs(folder: Path) -> list[Path]:
    """The images of all cities, sorted; InputError if a folder can't be read."""
    problems: list[Unreadable] = []
    if not is_folder(folder):
        return []
    found = files_below(folder, lambda name: name.endswith(IMAGE_SUFFIX), problems)
    if problems:
        raise InputError(problems[0].error)
    return [path for path in found if path.parent.parent == folder]


def _ids(stem: Path, photograph: Path) -> tuple[np.ndarray, Path]:
    """The id of each pixel, int [H, W], and the file it is from."""
    with _open(photograph) as image:
        size = (image.height, image.width)
    drawn, polygons = (stem.with_name(stem.name + end) for end in _GROUND_TRUTH)
    if not is_file(drawn):
        if not is_file(polygons):
            raise InputError(f"{photograph} has no ground truth: neither {drawn} nor {polygons}.")
        return _draw_polygons(polygons, size), polygons
    with _open(drawn) as image:
        if image.mode not in ("I;16", "I", "L"):
            raise InputError(f"{drawn} is {image.mode}; ids of instances are one channel.")
        ids = np.asarray(image)
    if ids.shape != size:
        raise InputError(f"{drawn} has (height, width) {ids.shape}, but {photograph} has {size}.")
    return ids, drawn


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """An image whose pixels are decoded when they are asked for; InputError if that fails."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} can't be read: {error}.") from None


_GROUND_TRUTH = ("_instanceIds.png", "_polygons.json")


def _draw_polygons(file: Path, size: Size) -> np.ndarray:
    """The ids of a file of polygons, int32 [H, W]: each drawn over those before it.

    Drawn by Pillow with its outline, as by the authors of the data: pixels are the same.
    """
    content = read_json(file)
    fields = content if isinstance(content, dict) else {}
    given, objects = (fields.get("imgHeight"), fields.get("imgWidth")), fields.get("objects")
    if given != size:
        raise InputError(f"{file} says (height, width) {given}, but its image has {size}.")
    if not isinstance(objects, list):
        raise InputError(f"{file} is no file of polygons: it has no list of objects.")
    canvas = Image.new("I", (size[1], size[0]))
    pen, counts = ImageDraw.Draw(canvas), Counter[int]()
    for number, entry in enumerate(objects, 1):
        try:
            id_ = -1 if entry.get("deleted") else _id_of(entry["label"], counts)
            if id_ >= 0:
                pen.polygon([(x, y) for x, y in entry["polygon"]], fill=id_)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unusable(f"{file}: object", number, entry, error) from None
    return np.asarray(canvas)


def _id_of(name: str, counts: Counter[int]) -> int:
    """The id of the next object called `name`; `counts` are those before it, by label."""
    group = name not in ID_OF and name.endswith("group")
    label = ID_OF.get(name.removesuffix("group") if group else name)
    if label is None:
        raise ValueError(f"Cityscapes has no label {shorten(name)}")
    if label < FIRST_COUNTED or group:
        return label
    counts[label] += 1
    return PER_LABEL * label + counts[label] - 1


def _segments(ids: np.ndarray, source: Path) -> Iterator[CityscapesSegment]:
    """The evaluated segments of an image, in the order of their ids."""
    flat = ids.ravel()
    order = np.argsort(flat.astype(np.uint16), kind="stable")
    values, starts = np.unique(flat[order], return_index=True)
    for id_, places in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
        label = id_ if id_ < PER_LABEL else id_ // PER_LABEL
        if label >= len(LABELS) or FIRST_COUNTED > label != id_:
            raise InputError(f"{source} has a pixel of id {id_}, which no label of Cityscapes has.")
        if label not in THINGS and label not in STUFF:
            continue
        rows, columns = np.divmod(places, ids.shape[1])
        y, x = int(rows[0]), int(columns.min())  # places ascend
        mask = ids[y : rows[-1] + 1, x : columns.max() + 1] == id_
        yield CityscapesSegment(
            id_, label, label in THINGS and id_ == label, CroppedMask(x, y, mask)
        )


def _info(segment: CityscapesSegment) -> dict[str, Any]:
    """The fields of a segment that both formats share."""
    crop = segment.crop
    return {
        "category_id": segment.label,
        "area": crop.area,
        "bbox": [crop.x, crop.y, crop.shape[1], crop.shape[0]],
        "iscrowd": int(segment.crowd),
    }


def _annotation(segment: CityscapesSegment, ids: np.ndarray) -> dict[str, Any]:
    height, width = ids.shape
    return _info(segment) | {"segmentation": rle_from_crop(segment.crop, (height, width))}


def _categories(names: dict[int, str]) -> list[dict[str, Any]]:
    rows = sorted(names.items())
    return [{"id": id_, "name": name, "isthing": int(id_ in THINGS)} for id_, name in rows]


def _write_ids(path: Path, ids: np.ndarray, segments: list[CityscapesSegment]) -> None:
    """A PNG as COCO's, 0 where nothing is evaluated."""
    kept = np.zeros(1 << 16, np.int32)
    known = [segment.id for segment in segments]
    kept[known] = known
    write_id_png(path, kept[ids])


def _write(
    path: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(path, content)
