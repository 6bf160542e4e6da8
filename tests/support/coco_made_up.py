"""A made-up COCO instances file, and detections made from the ground truth of any such file."""

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from tests.support.coco_files import rle_from_mask, uncompressed

Content = dict[str, Any]
SIZE = (200, 300)  # (height, width) of most images


def made_up() -> Content:
    """Polygons, both kinds of RLE, crowds, gaps in all ids, an empty and a crowded image."""
    rng = np.random.default_rng(0)
    sizes = dict.fromkeys((7, 3, 40, 41, 12, 90), SIZE)
    content: Content = {
        "images": [
            {"id": id_, "file_name": f"{id_}.png", "height": height, "width": width}
            for id_, (height, width) in sizes.items()
        ],
        "categories": [{"id": id_, "name": f"thing {id_}"} for id_ in (9, 2, 5)],
        "annotations": [],
    }
    for image in (7, 3, 40, 41):  # 12 stays empty
        for number in range(12):
            radius = rng.choice([8, 25, 70])
            x, y = rng.integers(0, SIZE[1]), rng.integers(0, SIZE[0])
            axes = rng.uniform(0.5, 1.2, 2) * radius
            half = (int(axes[0]), int(axes[1]))
            corners = np.array(cv2.ellipse2Poly((int(x), int(y)), half, 30, 0, 360, 9))
            corners = corners.clip(0, (SIZE[1] - 1, SIZE[0] - 1))
            _add(content, image, int(rng.choice([2, 5, 9])), corners, number)
    for number in range(150):  # all of one class
        x, y = 19 * (number % 15), 19 * (number // 15)
        corners = np.array([[x, y], [x + 12, y], [x + 12, y + 12], [x, y + 12]])
        _add(content, 90, 5, corners, 3 * number)
    return content


def _add(content: Content, image: int, category: int, corners: np.ndarray, number: int) -> None:
    """One object with `corners`, int [n, 2]; `number` says in which form, and which are crowds."""
    polygon = corners.ravel().astype(float).tolist()
    mask = coco_mask.merge(coco_mask.frPyObjects([polygon], *SIZE))
    form = number % 3
    segmentation: Any = [polygon]
    if form == 1:
        segmentation = rle_from_mask(coco_mask.decode(mask))
    elif form == 2:
        segmentation = uncompressed(coco_mask.decode(mask))
    content["annotations"].append(
        {
            "id": 10 + 3 * len(content["annotations"]),
            "image_id": image,
            "category_id": category,
            "segmentation": segmentation,
            "bbox": coco_mask.toBbox(mask).tolist(),
            "area": int(coco_mask.area(mask)),
            "iscrowd": int(number % 12 == 11),
        }
    )


def ground_truth_as_detections(content: Content) -> list[dict[str, Any]]:
    """Every object that is no crowd, as it is, with score 1."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {key: entry[key] for key in keys} | {"score": 1.0}
        for entry in content["annotations"]
        if not entry["iscrowd"]
    ]


def noisy_detections(content: Content) -> list[dict[str, Any]]:
    """Objects moved a little, some missing, some of another class; crowds too; scores at random."""
    rng = np.random.default_rng(1)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    classes = [category["id"] for category in content["categories"]]
    rows = []
    for entry in content["annotations"]:
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            size = sizes[entry["image_id"]]
            mask = coco_mask.decode(_rle(entry["segmentation"], size))
            spread = 0.06 * np.sqrt(mask.sum())
            shift = rng.normal(0, spread, 2).round().astype(int)
            box = np.array(entry["bbox"]) + rng.normal(0, spread, 4)
            moved = np.roll(mask, tuple(shift), (0, 1))
            other = rng.random() < 0.1
            rows.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": int(rng.choice(classes)) if other else entry["category_id"],
                    "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()],
                    "segmentation": rle_from_mask(moved),
                    "score": float(rng.random()),
                }
            )
    return rows


def _rle(segmentation: Any, size: tuple[int, int]) -> Any:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, *size)
    return segmentation
