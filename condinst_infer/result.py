"""What an image turned out to hold: boxes, scores, labels and masks in original pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from condinst_infer.errors import InputError, require


@dataclass(frozen=True, eq=False)
class Crop:
    """The part of a mask that holds its foreground; outside is background."""

    x: int  # column of the left edge, original pixels
    y: int  # row of the top edge
    mask: np.ndarray  # bool [h, w], True inside the object; (0, 0) for an empty mask


@dataclass(frozen=True, eq=False)
class Instances:
    """The K instances of one image, best score first; K may be 0."""

    boxes: np.ndarray  # float32 [K, 4], x1 y1 x2 y2 in original pixels, clipped to the image
    scores: np.ndarray  # float32 [K], as the model reports them
    labels: np.ndarray  # int32 [K], contiguous class index
    names: tuple[str, ...]  # K class names
    crops: list[Crop]  # K masks
    image_size: tuple[int, int]  # (height, width) of the original image
    category_ids: tuple[int, ...]  # of the data set, indexed by label
    image: np.ndarray | None = None  # the original, BGR uint8 [H, W, 3]; not a copy

    def __len__(self) -> int:
        """K."""
        return len(self.scores)

    @cached_property
    def masks(self) -> np.ndarray:
        """Dense masks, bool [K, H, W]; made at the first access and kept."""
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        for dense, crop in zip(masks, self.crops, strict=True):
            height, width = crop.mask.shape
            dense[crop.y : crop.y + height, crop.x : crop.x + width] = crop.mask
        return masks

    def rle(self) -> list[dict[str, Any]]:
        """K compressed COCO RLEs, {"size": [H, W], "counts": str}, without dense masks."""
        return [rle_from_crop(crop, self.image_size) for crop in self.crops]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """K entries of a COCO result file; boxes are x, y, width, height."""
        boxes_xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1)
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
                "segmentation": rle,
            }
            for label, box, score, rle in zip(
                self.labels, boxes_xywh.tolist(), self.scores.tolist(), self.rle(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """This as `supervision.Detections`, with dense masks and `data["class_name"]`.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        supervision = require("supervision", "supervision")
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(
        self,
        image: np.ndarray | None = None,
        *,
        labels: bool = True,
        boxes: bool = False,
        opacity: float = 0.45,
    ) -> np.ndarray:
        """A picture of the instances on their image, BGR uint8 [H, W, 3].

        Args:
            image: BGR uint8 [H, W, 3] to draw on a copy of; the original by default.
            labels: write class and score.
            boxes: draw the boxes too.
            opacity: of the filling, 0 to 1.

        Raises:
            InputError: there is no image, or it has another size.
        """
        from condinst_infer.draw import overlay  # OpenCV and fonts, only for those who draw

        image = self.image if image is None else image
        if image is None:
            raise InputError("this result keeps no image to draw on; give one: plot(image)")
        if image.dtype != np.uint8 or image.shape != (*self.image_size, 3):
            raise InputError(
                f"the image to draw on is {image.dtype} {image.shape}; "
                f"it must be uint8 {(*self.image_size, 3)}."
            )
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        return overlay(
            image,
            self.crops,
            texts=texts if labels else None,
            boxes=self.boxes if boxes else None,
            opacity=opacity,
        )


def rle_from_crop(crop: Crop, image_size: tuple[int, int]) -> dict[str, Any]:
    """The compressed COCO RLE of a mask, equal to `pycocotools.mask.encode` of the dense one."""
    height, width = image_size
    columns = np.zeros((crop.mask.shape[1], crop.mask.shape[0] + 2), dtype=np.int8)
    columns[:, 1:-1] = crop.mask.T  # runs go down the columns; a zero on both ends closes them
    steps = np.diff(columns)  # [w, h + 1]
    column, row = np.nonzero(steps > 0)
    starts = (crop.x + column) * height + crop.y + row
    column, row = np.nonzero(steps < 0)
    stops = (crop.x + column) * height + crop.y + row
    # Full-height columns touch the next one: one run, not two.
    apart = starts[1:] != stops[:-1]
    edges = np.empty(2 * (np.count_nonzero(apart) + min(len(starts), 1)) + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, height * width
    edges[1:-1:2] = starts[np.concatenate([[True], apart])[: len(starts)]]
    edges[2:-1:2] = stops[np.concatenate([apart, [True]])[: len(stops)]]
    counts = np.diff(edges)
    if len(counts) > 1 and counts[-1] == 0:  # COCO writes no empty run at the end
        counts = counts[:-1]
    return {"size": [height, width], "counts": compressed_counts(counts)}


def compressed_counts(counts: Sequence[int] | np.ndarray) -> str:
    """Run lengths [n] as COCO's text: differences to the run two before, five bits a character."""
    rest = np.array(counts, dtype=np.int64)
    rest[3:] -= np.asarray(counts, dtype=np.int64)[1:-2]
    characters = []  # one uint8 [n] per group of five bits, 0 where the number has ended
    open_ = np.ones(len(rest), dtype=bool)
    while open_.any():
        bits = rest & 31
        rest = rest >> 5
        # The sign is the highest bit of the last group, so the rest must agree with it.
        more = rest != np.where(bits & 16, -1, 0)
        characters.append(np.where(open_, bits + 32 * more + 48, 0).astype(np.uint8))
        open_ = open_ & more
    text = np.stack(characters, axis=1)  # [n, groups]
    return text[text > 0].tobytes().decode("ascii")
