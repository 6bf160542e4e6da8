"""Label files of `condinst predict --format`: YOLO, LabelMe and COCO data sets."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from condinst_infer.config.model import CondInstConfig
from condinst_infer.results.formats import coco_dataset, is_one_ring, yolo_data_yaml
from condinst_infer.results.instances import Instances
from condinst_infer.system.outputs import write_text
from condinst_infer.system.row_file import ROWS, write_with_rows

SUFFIXES = {"yolo": ".txt", "labelme": ".json"}  # of the file of one image
COCO_DATASET = "annotations.json"


def label_file(output: Path, name: Path, format_: str) -> Path:
    """The label file of an image whose results belong at `name`."""
    folder = output / "labels" if format_ == "yolo" else output
    return folder / name.with_suffix(SUFFIXES[format_])


def write_labels(path: Path, image: Path, result: Instances, format_: str) -> int:
    """Write the label file of one image; the number of instances that it holds by outer rings only.

    Args:
        path: the file to write.
        image: the image file, which LabelMe finds relative to `path`.
        result: the instances of the image.
        format_: "yolo" or "labelme".
    """
    if format_ == "yolo":
        text = result.to_yolo()
    else:
        relative = os.path.relpath(image.resolve(), path.parent.resolve())
        text = json.dumps(result.to_labelme(Path(relative).as_posix()))
    write_text(path, text)
    return sum(bool(polygons) and not is_one_ring(polygons) for polygons in result.polygons())


def write_data_set(
    output: Path,
    format_: str,
    config: CondInstConfig,
    reports: Sequence[dict[str, Any]],
    annotations: Iterable[dict[str, Any]],
) -> Path:
    """Write the file that describes all images, and return its path.

    Args:
        output: the folder of the results.
        format_: "yolo" or "coco-dataset".
        config: of the model: class names and category ids.
        reports: on each image: image_id, name and size.
        annotations: of all images, as `Instances.to_coco_annotations` gives them.
    """
    if format_ == "yolo":
        path = output / "data.yaml"
        write_text(path, yolo_data_yaml(config.class_names))
        return path
    images = [
        {
            "id": report["image_id"],
            "file_name": report["name"],
            "height": report["size"][0],
            "width": report["size"][1],
        }
        for report in reports
    ]
    path = output / COCO_DATASET
    content = coco_dataset(images, [], config.class_names, config.category_ids)
    numbered = ({"id": k, **row} for k, row in enumerate(annotations, 1))
    write_with_rows(path, content | {"annotations": ROWS}, numbered)
    return path
