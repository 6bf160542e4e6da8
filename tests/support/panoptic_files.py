"""COCO panoptic files that tests write for themselves, and segments found with some mistakes."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CATEGORIES = (
    *({"id": id_, "name": f"thing {id_}", "isthing": 1} for id_ in (2, 5, 9)),
    *({"id": id_, "name": f"stuff {id_}", "isthing": 0} for id_ in (3, 40, 41)),
)
SIZE = (60, 80)
Segment = dict[str, Any]


def segment(id_: int, category: int, crowd: int = 0) -> Segment:
    """What a panoptic file lists of a segment, as far as it is read."""
    return {"id": id_, "category_id": category, "iscrowd": crowd}


def write_panoptic(
    file: Path,
    images: list[tuple[np.ndarray, list[Segment]]],
    changes: dict[str, Any] | None = None,
) -> Path:
    """A panoptic file and its PNGs: `images` are id maps [H, W] and segments; `changes` parts.

    Photographs go to the folder "images" beside it; each segment has one colour there.
    """
    photographs, folder = file.parent / "images", file.with_suffix("")
    photographs.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    listed, annotations = [], []
    for number, (ids, segments) in enumerate(images):
        height, width = ids.shape
        cv2.imwrite(str(photographs / f"{number}.png"), photograph(ids))
        cv2.imwrite(str(folder / f"ids {number}.png"), coloured(ids))
        size = {"height": height, "width": width}
        listed.append({"id": 7 * number, "file_name": f"{number}.png", **size})
        row = {"image_id": 7 * number, "file_name": f"ids {number}.png"}
        annotations.append(row | {"segments_info": segments})
    content = {"images": listed, "annotations": annotations, "categories": list(CATEGORIES)}
    file.write_text(json.dumps(content | (changes or {})))
    return file


def photograph(ids: np.ndarray) -> np.ndarray:
    """A picture of the segments, BGR uint8 [H, W, 3]; void is black."""
    return np.stack([ids * prime % 251 for prime in (7, 31, 97)], -1).astype(np.uint8)


def coloured(ids: np.ndarray) -> np.ndarray:
    """An id map as OpenCV writes it, blue first: id = R + 256 G + 65536 B."""
    return np.stack([ids // 65536, ids // 256 % 256, ids % 256], -1).astype(np.uint8)


def made_up(seed: int) -> tuple[np.ndarray, list[Segment]]:
    """An image of 14 regions: things, of which one is a crowd, up to three kinds of stuff, void."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, SIZE, (14, 2))
    pixels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    nearest = np.linalg.norm(pixels[:, :, None] - places, axis=-1).argmin(-1)
    ids = 1 + rng.choice(1 << 24, 14, replace=False) % ((1 << 24) - 1)  # some need all three bytes
    kinds = [2, 2, 2, 5, 5, 9, 9, 9, *rng.choice([3, 40, 41], 4).tolist()]
    owner = {kind: id_ for kind, id_ in zip(kinds, ids.tolist(), strict=False)}
    names = [owner[k] if k in (3, 40, 41) else i for k, i in zip(kinds, ids.tolist(), strict=False)]
    names = np.array([*names, 0, 0])
    shown = names[nearest]
    crowds = {names[2], names[7]}
    return shown, [
        segment(id_, kind, int(id_ in crowds))
        for id_, kind in {n: k for n, k in zip(names.tolist(), kinds, strict=False)}.items()
        if (shown == id_).any()
    ]


def noisy(ids: np.ndarray, segments: list[Segment], seed: int) -> tuple[np.ndarray, list[Segment]]:
    """Segments found: moved a little, some missing, cut in two, or of another class."""
    rng = np.random.default_rng(1000 + seed)
    found, kinds, count = np.zeros_like(ids), {}, 0
    for info in segments:
        fate = rng.random()
        mask = np.roll(ids == info["id"], rng.integers(-3, 4, 2), (0, 1))
        if fate < 0.1:
            continue
        if fate < 0.2:
            mask &= np.arange(ids.shape[1]) < mask.nonzero()[1].mean()
        category = info["category_id"] if fate < 0.85 else CATEGORIES[int(rng.integers(6))]["id"]
        count += 1
        found[mask] = 70_000 * count
        kinds[70_000 * count] = category
    found[(ids == 0) & (rng.random() < 0.5)] = 77  # of a class, where the truth is void
    kinds[77] = 5
    return found, [segment(id_, kinds[id_]) for id_ in np.unique(found).tolist() if id_]
