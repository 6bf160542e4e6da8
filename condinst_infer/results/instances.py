"""Instances of one image: boxes, scores, labels and masks in original pixels."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from condinst_infer.errors import require
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.rle import rle_from_crop

if TYPE_CHECKING:
    from supervision import Detections

CROWD = 40  # more labels than these hide what they name
_CLASSES_SHOWN = 3  # in the text of a result


@dataclass(frozen=True, eq=False)
class Instances:
    """The K instances of one image, best score first; K may be 0."""

    boxes: NDArray[np.float32]  # [K, 4], x1 y1 x2 y2 in original pixels, clipped to the image
    scores: NDArray[np.float32]  # [K], as the model reports them
    labels: NDArray[np.int32]  # [K], contiguous class index
    names: tuple[str, ...]  # K class names
    crops: list[CroppedMask]  # K masks
    image_size: tuple[int, int]  # (height, width) of the original image
    category_ids: tuple[int, ...]  # of the data set, indexed by label
    image: NDArray[np.uint8] | None = None  # the original, BGR [H, W, 3]; not a copy
    # On a GPU, before any filter of the call: boxes, scores, labels and masks of all slots as the
    # graph puts them out, in device memory. Other libraries take these arrays without a copy, by
    # `__cuda_array_interface__`. Valid until the pipeline's next call.
    on_device: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """K."""
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.image_size
        classes = Counter(self.names).most_common()
        parts = [f"{count} {name}" for name, count in classes[:_CLASSES_SHOWN]]
        if rest := sum(count for _, count in classes[_CLASSES_SHOWN:]):
            parts.append(f"{rest} of other classes")
        text = f" ({', '.join(parts)})" if parts else ""
        memory = "" if self.on_device is None else ", also in GPU memory"
        return f"<Instances: {len(self)}{text} in {width} x {height} pixels{memory}>"

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
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

    def to_coco_record(self, image_id: int) -> dict[str, Any]:
        """The entries of `to_coco` under "detections", as JSON lines and shards hold them."""
        return {"detections": self.to_coco(image_id)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: image_size, boxes, scores, labels, names and masks (COCO RLEs)."""
        return {
            "image_size": list(self.image_size),
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": list(self.names),
            "masks": self.rle(),
        }

    def to_supervision(self) -> "Detections":
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
        labels: bool | None = None,
        boxes: bool = False,
        opacity: float = 0.4,
    ) -> NDArray[np.uint8]:
        """A picture of the instances on their image, BGR uint8 [H, W, 3].

        Args:
            image: BGR uint8 [H, W, 3] to draw on a copy of; the original by default.
            labels: write class and score; None does unless they would hide a crowded image.
            boxes: draw the boxes too.
            opacity: of the filling, 0 to 1.

        Raises:
            InputError: there is no image, or it has another size.
        """
        from condinst_infer.results.draw import canvas_to_draw_on, overlay  # loads fonts

        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        return overlay(
            canvas_to_draw_on(image, self.image, self.image_size),
            self.crops,
            texts=texts if (len(self) <= CROWD if labels is None else labels) else None,
            boxes=self.boxes if boxes else None,
            opacity=opacity,
        )
