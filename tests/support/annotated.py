"""An annotation file of the test photographs."""

import json
from pathlib import Path
from typing import Any

from condinst_infer.config.class_names import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

CLASSES = dict(zip(COCO_CATEGORY_IDS, COCO_CLASS_NAMES, strict=True))
SIZES = {"a.png": (60, 90), "b/a.png": (90, 60), "12.jpg": (60, 90)}  # of `photos`


def annotated(photos: Path, classes: dict[int, str] = CLASSES, first: int = 1) -> Path:
    """Annotations of `photos`: 5/6 of its bright square, of the first class, and its whole box."""
    content: dict[str, Any] = {
        "images": [
            {"id": 7 * number, "file_name": name, "height": height, "width": width}
            for number, (name, (height, width)) in enumerate(SIZES.items())
        ],
        "categories": [{"id": id_, "name": name} for id_, name in classes.items()],
        "annotations": [
            {
                "id": 5 * number,
                "image_id": 7 * number,
                "category_id": first,
                "segmentation": [[10, 20, 40, 20, 40, 45, 10, 45]],
                "bbox": [0, 0, width, height],
            }
            for number, (height, width) in enumerate(SIZES.values())
        ],
    }
    path = photos / "annotations.json"
    path.write_text(json.dumps(content))
    return path
