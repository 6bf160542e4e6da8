"""Files of other tools: CSV, YOLO, LabelMe and COCO data sets.

Every writer takes polygons (`polygons_from_crop`), names and sizes, and gives text or plain data
for JSON. YOLO and LabelMe hold outer rings only.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from condinst_infer.config.model import Size
from condinst_infer.results.polygons import Polygon, Ring

FORMATS = ("coco", "coco-dataset", "yolo", "labelme", "none")  # of `condinst predict`
# Coordinates of pixels are whole numbers. Some readers of YOLO's fractions round, others cut the
# digits off: with this much more, both find the pixel.
_INSIDE = 0.25


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A CSV file of `rows` under a line with the names of `columns`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def is_one_ring(polygons: Sequence[Polygon]) -> bool:
    """True if a mask is one part without a hole, which an outer ring describes exactly."""
    return len(polygons) == 1 and not polygons[0].holes


def yolo_text(
    polygons: Sequence[Sequence[Polygon]], labels: Sequence[int], image_size: Size
) -> str:
    """A label file of YOLO: a line "class x1 y1 x2 y2 ..." per instance, fractions of the image.

    Several parts are joined by lines of no width into one ring, as Ultralytics does. An instance
    without pixels has no line.
    """
    height, width = image_size
    lines = []
    for parts, label in zip(polygons, labels, strict=True):
        if parts:
            ring = _join_rings([part.outer for part in parts]) + _INSIDE
            fractions = (_at_least_three(ring) / (width, height)).ravel()
            lines.append(" ".join([str(int(label)), *(f"{value:.7f}" for value in fractions)]))
    return "".join(f"{line}\n" for line in lines)


def yolo_data_yaml(class_names: Sequence[str]) -> str:
    """The data.yaml of a YOLO data set; images belong in images/, beside labels/."""
    # a string of JSON is one of YAML
    names = "".join(f"  {k}: {json.dumps(name)}\n" for k, name in enumerate(class_names))
    return f"path: .\ntrain: images\nval: images\nnc: {len(class_names)}\nnames:\n{names}"


def labelme_data(
    polygons: Sequence[Sequence[Polygon]],
    names: Sequence[str],
    image_size: Size,
    image_path: str,
) -> dict[str, Any]:
    """The content of LabelMe's JSON file of one image.

    Parts of one instance are shapes of one group. `image_path` is relative to the file.
    """
    shapes = [
        {
            "label": name,
            "points": _at_least_three(part.outer).astype(float).tolist(),
            "group_id": k if len(parts) > 1 else None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for k, (parts, name) in enumerate(zip(polygons, names, strict=True), 1)
        for part in parts
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image_size[0],
        "imageWidth": image_size[1],
    }


def coco_annotation(
    polygons: Sequence[Polygon],
    rle: Mapping[str, Any],
    *,
    image_id: int,
    category_id: int,
    area: int,
    box_xywh: Sequence[float],
    score: float,
) -> dict[str, Any]:
    """An annotation of a COCO data set, without its id.

    The mask is a polygon where one ring of at least three points describes it exactly, else the
    RLE. Points are pixels that belong to the mask.
    """
    ring = polygons[0].outer if is_one_ring(polygons) else None
    exact = ring is not None and len(ring) >= 3
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [ring.ravel().tolist()] if ring is not None and exact else dict(rle),
        "area": area,
        "bbox": list(box_xywh),
        "iscrowd": 0,
        "score": score,
    }


def coco_dataset(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """The content of a COCO instances file; annotations are numbered from 1."""
    return {
        "info": {"description": "predictions of condinst-infer"},
        "licenses": [],
        "images": list(images),
        "annotations": [{"id": k, **row} for k, row in enumerate(annotations, 1)],
        "categories": [
            {"id": id_, "name": name, "supercategory": ""}
            for id_, name in zip(category_ids, class_names, strict=True)
        ],
    }


def _at_least_three(ring: np.ndarray) -> np.ndarray:
    """`ring`, with its last point repeated until there are three."""
    missing = max(0, 3 - len(ring))
    return np.concatenate([ring, np.repeat(ring[-1:], missing, axis=0)])


def _join_rings(rings: Sequence[Ring]) -> Ring:
    """One ring through all of `rings`: across to the nearest point, around the ring, and back."""
    joined = rings[0]
    for ring in rings[1:]:
        distances = [np.square(joined - point).sum(axis=1).min() for point in ring]
        start = int(np.argmin(distances))
        leave = int(np.square(joined - ring[start]).sum(axis=1).argmin())
        around = np.roll(ring, -start, axis=0)
        joined = np.concatenate([joined[: leave + 1], around, around[:1], joined[leave:]])
    return joined
