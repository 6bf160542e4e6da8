"""Small COCO data sets that tests write for themselves."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CATEGORIES = ({"id": 3, "name": "disc"}, {"id": 17, "name": "box"})  # ids with a gap


def polygon_from_box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """The corners of a box, x, y, width, height, as a COCO segmentation."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def rle_from_mask(mask: np.ndarray) -> dict[str, Any]:
    """`mask`, [H, W], as the compressed RLE that JSON holds."""
    rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """`mask`, [H, W], as the run lengths COCO writes for crowds."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}


def write_scenes(folder: Path, count: int, *, size: tuple[int, int] = (96, 128)) -> Path:
    """`count` images with a few bright discs and boxes, and their annotations.

    Gives FOLDER/instances.json; the images lie in FOLDER/images. The first image has no object.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 40, (*size, 3), np.uint8)
        name = f"{number:03d}.png"
        images.append({"id": 10 + number, "file_name": name, "height": size[0], "width": size[1]})
        for _ in range(int(rng.integers(1, 4)) if number else 0):
            disc = bool(rng.random() < 0.5)
            x, y = (int(rng.integers(20, side - 20)) for side in (size[1], size[0]))
            mask = np.zeros(size, np.uint8)
            if disc:
                cv2.circle(mask, (x, y), int(rng.integers(6, 16)), 1, -1)
            else:
                half = int(rng.integers(6, 16))
                cv2.rectangle(mask, (x - half, y - half), (x + half, y + half), 1, -1)
            image[mask > 0] = (60, 200, 90) if disc else (200, 80, 220)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + number,
                    "category_id": CATEGORIES[0 if disc else 1]["id"],
                    "segmentation": rle_from_mask(mask),
                    "area": int(mask.sum()),
                    "bbox": list(map(float, cv2.boundingRect(mask))),
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / "images" / name), image)
    file = folder / "instances.json"
    content = {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}
    file.write_text(json.dumps(content))
    return file
