"""Instances of one image: boxes, scores, labels and masks in original pixels."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from condinst_infer.config.class_names import labels_from_classes
from condinst_infer.errors import InputError, require, shorten
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.rle import crop_from_rle, rle_from_crop

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections

    from condinst_infer.results.polygons import Polygon

CROWD = 40  # more labels than these hide what they name
_CLASSES_SHOWN = 3  # in the text of a result
_COLUMNS = ("x1", "y1", "x2", "y2", "score", "label", "name", "category_id", "area")


@dataclass(frozen=True, eq=False)
class Instance:
    """One instance of an image."""

    box: NDArray[np.float32]  # [4], x1 y1 x2 y2 in original pixels
    score: float
    label: int  # contiguous class index
    name: str  # of the class
    crop: CroppedMask
    image_size: tuple[int, int]  # (height, width) of the original image

    def __repr__(self) -> str:
        x1, y1, x2, y2 = (round(v) for v in self.box.tolist())
        return f"<Instance: {self.name} {self.score:.2f} at ({x1}, {y1}, {x2}, {y2})>"

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The dense mask, bool [H, W], made at each access."""
        return self.crop.dense(self.image_size)

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return self.crop.area

    def rle(self) -> dict[str, Any]:
        """The compressed COCO RLE of the mask, {"size": [H, W], "counts": str}."""
        return rle_from_crop(self.crop, self.image_size)

    def polygons(self, tolerance: float = 0.0) -> "list[Polygon]":
        """The parts of the mask with their holes, as `Instances.polygons`."""
        from condinst_infer.results.polygons import polygons_from_crop

        return polygons_from_crop(self.crop, tolerance)


@dataclass(frozen=True, eq=False)
class Instances(Sequence[Instance]):
    """The K instances of one image, best score first; K may be 0.

    A sequence of `Instance`: `len(r)`, `for instance in r`, `r[3]`. Slices, masks such as
    `r[r.scores > 0.5]` and arrays of indices give `Instances`.
    """

    boxes: NDArray[np.float32]  # [K, 4], x1 y1 x2 y2 in original pixels, clipped to the image
    scores: NDArray[np.float32]  # [K], as the model reports them
    labels: NDArray[np.int32]  # [K], contiguous class index
    crops: list[CroppedMask]  # K masks
    image_size: tuple[int, int]  # (height, width) of the original image
    class_names: tuple[str, ...]  # of all classes of the model, indexed by label
    category_ids: tuple[int, ...]  # of the data set, indexed by label
    image: NDArray[np.uint8] | None = None  # the original, BGR [H, W, 3]; not a copy
    # On a GPU, before any filter of the call: boxes, scores, labels and masks of all slots as the
    # graph puts them out, in device memory. Other libraries take these arrays without a copy, by
    # `__cuda_array_interface__`. Valid until the pipeline's next call.
    on_device: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """K."""
        return len(self.scores)

    def __iter__(self) -> Iterator[Instance]:
        return (self[k] for k in range(len(self)))

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Instance: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> "Instances": ...

    def __getitem__(
        self, index: int | np.integer[Any] | slice | Sequence[int] | NDArray[Any]
    ) -> "Instance | Instances":
        """One instance; for a slice, bool [K] or integer indices, the instances there.

        Raises:
            IndexError: there is no such instance, or the array has another shape or dtype.
        """
        if isinstance(index, (int, np.integer)):
            k = range(len(self))[index]  # IndexError where there is none
            return Instance(
                box=self.boxes[k],
                score=float(self.scores[k]),
                label=int(self.labels[k]),
                name=self.names[k],
                crop=self.crops[k],
                image_size=self.image_size,
            )
        from condinst_infer.results.selection import positions

        kept = positions(index, len(self))
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            crops=[self.crops[k] for k in kept],
            on_device=None,
        )

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
    def names(self) -> tuple[str, ...]:
        """K class names."""
        return tuple(self.class_names[label] for label in self.labels)

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """Dense masks, bool [K, H, W]; made at the first access and kept."""
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        for dense, crop in zip(masks, self.crops, strict=True):
            crop.paint(dense)
        return masks

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """Number of pixels of each mask, [K]."""
        return np.array([crop.area for crop in self.crops], dtype=np.int64)

    def filter(
        self,
        *,
        classes: int | str | Iterable[int | str] | None = None,
        min_score: float = 0.0,
        min_area: float = 0.0,
    ) -> "Instances":
        """The instances of some classes, with at least a score and a mask area.

        Args:
            classes: class names or indices to keep; None keeps all.
            min_score: lowest score, 0 to 1.
            min_area: smallest number of mask pixels.

        Raises:
            ConfigError: the model has no such class.
        """
        keep = self.scores >= min_score
        if min_area > 0:
            keep &= self.areas >= min_area
        if classes is not None:
            keep &= np.isin(self.labels, labels_from_classes(classes, self.class_names))
        return self[keep]

    def rle(self) -> list[dict[str, Any]]:
        """K compressed COCO RLEs, {"size": [H, W], "counts": str}, without dense masks."""
        return [rle_from_crop(crop, self.image_size) for crop in self.crops]

    def polygons(self, tolerance: float = 0.0) -> "list[list[Polygon]]":
        """The parts of each mask, the largest first: outer rings and holes through border pixels.

        Args:
            tolerance: a ring may leave the border by so many pixels, which takes fewer points.
        """
        from condinst_infer.results.polygons import polygons_from_crop

        return [polygons_from_crop(crop, tolerance) for crop in self.crops]

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

    def to_coco_annotations(self, image_id: int) -> list[dict[str, Any]]:
        """K annotations of a COCO data set, without ids.

        Masks are polygons, or RLEs where a mask has holes or several parts.
        """
        from condinst_infer.results.formats import coco_annotation
        from condinst_infer.results.polygons import polygons_from_crop

        return [
            coco_annotation(
                polygons_from_crop(crop),
                rle_from_crop(crop, self.image_size),
                image_id=image_id,
                category_id=self.category_ids[label],
                area=crop.area,
                box_xywh=[float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                score=float(score),
            )
            for crop, label, (x1, y1, x2, y2), score in zip(
                self.crops, self.labels, self.boxes, self.scores, strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as `export/schema/results.json` describes it."""
        return {
            "image_size": list(self.image_size),
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": list(self.names),
            "masks": self.rle(),
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
        }

    def to_json(self) -> str:
        """`to_dict` as a JSON text; `from_json` reads it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, source: str | bytes | PathLike[str]) -> "Instances":
        """The instances in a text of `to_json`, or in the file of a Path, without the image.

        Raises:
            InputError: it is anything else; the message names the field.
        """
        from condinst_infer.results.json_format import INSTANCES, parse

        data = parse(source, INSTANCES, "instances")
        count, classes = len(data["boxes"]), len(data["class_names"])
        for name in ("scores", "labels", "names", "masks"):
            if len(data[name]) != count:
                raise InputError(f"instances.{name} has {len(data[name])} entries, boxes {count}.")
        if len(data["category_ids"]) != classes:
            raise InputError(f"instances.category_ids must have {classes} entries, as class_names.")
        for k, (label, name) in enumerate(zip(data["labels"], data["names"], strict=True)):
            if label >= classes or data["class_names"][label] != name:
                raise InputError(
                    f"instances.labels[{k}] is {label}, not the class {shorten(name)}."
                )
        return cls(
            boxes=np.array(data["boxes"], dtype=np.float32).reshape(-1, 4),
            scores=np.array(data["scores"], dtype=np.float32),
            labels=np.array(data["labels"], dtype=np.int32),
            crops=crops_from_rles(data["masks"], data["image_size"], "instances.masks"),
            image_size=(data["image_size"][0], data["image_size"][1]),
            class_names=tuple(data["class_names"]),
            category_ids=tuple(data["category_ids"]),
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row of plain values per instance, as `to_dataframe` and .csv files have them."""
        values = zip(
            self.boxes.tolist(),
            self.scores.tolist(),
            self.labels.tolist(),
            self.names,
            self.areas.tolist(),
            strict=True,
        )
        return [
            dict(
                zip(
                    _COLUMNS,
                    (*box, score, label, name, self.category_ids[label], area),
                    strict=True,
                )
            )
            for box, score, label, name, area in values
        ]

    def to_dataframe(self) -> "DataFrame":
        """A pandas data frame with a row per instance: box, score, label, name, area.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", "dataframe")
        return pandas.DataFrame(self.rows(), columns=list(_COLUMNS))

    def to_yolo(self) -> str:
        """The lines of a YOLO label file, with outer rings as polygons; see `yolo_text`."""
        from condinst_infer.results.formats import yolo_text

        return yolo_text(self.polygons(), self.labels.tolist(), self.image_size)

    def to_labelme(self, image_path: str = "") -> dict[str, Any]:
        """The content of LabelMe's JSON file, with outer rings as polygons.

        Args:
            image_path: of the image file, relative to the JSON file.
        """
        from condinst_infer.results.formats import labelme_data

        return labelme_data(self.polygons(), self.names, self.image_size, image_path)

    def to_supervision(self, compact: bool | None = None) -> "Detections":
        """These as `supervision.Detections`, with masks and `data["class_name"]`.

        Args:
            compact: True keeps masks as supervision's CompactMask, in some kB, False as dense
                [K, H, W]; None is compact where the installed version has it.

        Raises:
            MissingExtraError: supervision is not installed.
            InputError: `compact` is True and the installed version has no CompactMask.
        """
        supervision = require("supervision", "supervision")
        kind = getattr(supervision, "CompactMask", None)
        able = hasattr(kind, "from_coco_rle")
        if compact and not able:
            raise InputError(
                f"supervision {supervision.__version__} has no CompactMask.from_coco_rle; update "
                "supervision, or call to_supervision(compact=False)."
            )
        compact = able if compact is None else compact
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self._compact_masks(kind) if compact else self.masks,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _compact_masks(self, kind: Any) -> Any:
        """supervision's CompactMask; its boxes include their last pixel."""
        corners = [
            (c.x, c.y, c.x + max(c.shape[1], 1) - 1, c.y + max(c.shape[0], 1) - 1)
            for c in self.crops
        ]
        boxes = np.array(corners, dtype=np.float32).reshape(-1, 4)
        return kind.from_coco_rle(self.rle(), boxes, self.image_size)

    def save(self, path: str | Path) -> None:
        """Write the result to a file, whole or not at all; the suffix says what.

        .png and .jpg: the overlay of `plot`; .json: `to_json`; .csv: a row per instance; .txt: a
        YOLO label file.

        Raises:
            InputError: another suffix, the file can't be written, or there is no image to draw on.
        """
        from condinst_infer.results.files import save_result

        writers = {".json": self.to_json, ".csv": self._csv, ".txt": self.to_yolo}
        save_result(Path(path), self.plot, writers)

    def _csv(self) -> str:
        from condinst_infer.results.formats import csv_text

        return csv_text(self.rows(), _COLUMNS)

    def show(self) -> None:
        """Show the overlay: in the cell of a notebook, else in the system's viewer.

        Raises:
            InputError: there is no image to draw on.
        """
        from condinst_infer.results.files import show_picture

        show_picture(self, self.plot())

    def _repr_png_(self) -> bytes | None:
        """The overlay as PNG, which notebooks show; None without an image."""
        from condinst_infer.results.draw import png_bytes

        return None if self.image is None else png_bytes(self.plot())

    def plot(
        self,
        image: np.ndarray | None = None,
        *,
        labels: bool | None = None,
        boxes: bool = False,
        fill: bool = True,
        opacity: float = 0.4,
        thickness: int | None = None,
        color_by: Literal["instance", "class"] = "instance",
    ) -> NDArray[np.uint8]:
        """A picture of the instances on their image, BGR uint8 [H, W, 3].

        Args:
            image: BGR uint8 [H, W, 3] to draw on a copy of; the original by default.
            labels: write class and score; None does unless they would hide a crowded image.
            boxes: draw the boxes too.
            fill: tint the masks; False draws contours only.
            opacity: of the filling, 0 to 1.
            thickness: of contours, in pixels; None follows the size of image and object.
            color_by: "instance" gives neighbours different colours, "class" one per class.

        Raises:
            InputError: there is no image, it has another size, or an option is out of range.
        """
        from condinst_infer.results.draw import canvas_to_draw_on, overlay  # loads fonts

        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        if color_by not in ("instance", "class"):
            raise InputError(f"color_by is {color_by!r}; it must be 'instance' or 'class'.")
        return overlay(
            canvas_to_draw_on(image, self.image, self.image_size),
            self.crops,
            texts=texts if (len(self) <= CROWD if labels is None else labels) else None,
            boxes=self.boxes if boxes else None,
            opacity=opacity if fill else 0.0,
            thickness=thickness,
            color_keys=self.labels.tolist() if color_by == "class" else None,
        )


def crops_from_rles(
    rles: Sequence[Mapping[str, Any]], image_size: ArrayLike, field: str
) -> list[CroppedMask]:
    """The masks in COCO RLEs of one image; InputError that names the entry of `field`."""
    crops = []
    for k, rle in enumerate(rles):
        if rle["size"] != image_size:
            raise InputError(f"{field}[{k}].size is {rle['size']}; the image has {image_size}.")
        try:
            crops.append(crop_from_rle(rle))
        except ValueError as error:
            raise InputError(f"{field}[{k}].counts is damaged: {error}.") from None
        except MemoryError:
            raise InputError(f"{field}[{k}] needs more memory than there is.") from None
    return crops
