"""Panoptic segmentation of one image: instances in front, stuff behind them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.class_names import labels_from_classes
from condinst_infer.errors import InputError, require
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import CROWD, Instances, crops_from_rles
from condinst_infer.results.panoptic_png import write_id_png
from condinst_infer.results.rle import rle_from_crop

if TYPE_CHECKING:
    from pandas import DataFrame

_COLUMNS = ("id", "category_id", "name", "is_thing", "area", "x1", "y1", "x2", "y2", "score")


class PanopticSegment(NamedTuple):
    """A thing, or all of the image that shows one kind of stuff."""

    id: int  # in `id_map`
    category_id: int  # of the data set
    name: str
    is_thing: bool
    area: int  # pixels
    box: tuple[int, int, int, int]  # x1, y1, x2, y2 of its pixels; the ends are outside
    score: float | None  # of a thing
    instance: int | None  # its place in `instances`

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: all fields but `instance`."""
        data = self._asdict() | {"box": list(self.box)}
        del data["instance"]
        return data


@dataclass(frozen=True, eq=False)
class PanopticSegmentation(Sequence[PanopticSegment]):
    """The segments of one image; they don't overlap, and what belongs to none is void.

    A sequence of `PanopticSegment`. Slices, masks and arrays of indices give a
    `PanopticSegmentation`, in which the pixels of the other segments are void.
    """

    id_map: NDArray[np.int32]  # [H, W], 0 where void
    segments: tuple[PanopticSegment, ...]  # things, best score first, then stuff; ids are 1, 2, ...
    instances: Instances  # those at or above the threshold, the dropped ones too; masks overlap
    image: NDArray[np.uint8] | None = None  # the original, BGR [H, W, 3]; not a copy

    def __len__(self) -> int:
        """Number of segments."""
        return len(self.segments)

    def __iter__(self) -> Iterator[PanopticSegment]:
        return iter(self.segments)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> PanopticSegment: ...

    @overload
    def __getitem__(
        self, index: slice | Sequence[int] | NDArray[Any]
    ) -> "PanopticSegmentation": ...

    def __getitem__(
        self, index: int | np.integer[Any] | slice | Sequence[int] | NDArray[Any]
    ) -> "PanopticSegment | PanopticSegmentation":
        """One segment; for a slice, bool or integer indices, these segments, the rest void.

        Raises:
            IndexError: there is no such segment, or the array has another shape or dtype.
        """
        if isinstance(index, (int, np.integer)):
            return self.segments[range(len(self))[index]]
        from condinst_infer.results.selection import positions

        kept = tuple(self.segments[k] for k in positions(index, len(self)))
        visible = np.isin(self.id_map, [segment.id for segment in kept])
        return replace(self, segments=kept, id_map=np.where(visible, self.id_map, 0))

    def __repr__(self) -> str:
        height, width = self.id_map.shape
        things = sum(segment.is_thing for segment in self.segments)
        return (
            f"<PanopticSegmentation: {things} thing and {len(self.segments) - things} stuff "
            f"segments in {width} x {height} pixels>"
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.id_map.shape[0], self.id_map.shape[1]

    @property
    def crops(self) -> list[CroppedMask]:
        """The pixels of each segment, cut out."""
        return [
            CroppedMask(x1, y1, self.id_map[y1:y2, x1:x2] == segment.id)
            for segment in self.segments
            for x1, y1, x2, y2 in [segment.box]
        ]

    def filter(
        self,
        *,
        classes: str | Iterable[str] | None = None,
        min_score: float = 0.0,
        min_area: float = 0.0,
    ) -> "PanopticSegmentation":
        """The segments of some classes, with at least a score and an area; the rest is void.

        Args:
            classes: names of things and stuff to keep; None keeps all.
            min_score: lowest score of a thing, 0 to 1; stuff has none and stays.
            min_area: smallest number of pixels.

        Raises:
            ConfigError: no segment is of such a class.
        """
        known = list(dict.fromkeys(segment.name for segment in self.segments))
        names = known
        if classes is not None:
            names = [known[label] for label in labels_from_classes(classes, known)]
        kept = [
            segment.name in names
            and segment.area >= min_area
            and (segment.score is None or segment.score >= min_score)
            for segment in self.segments
        ]
        return self[np.array(kept, dtype=bool)]

    def rle(self) -> list[dict[str, Any]]:
        """A compressed COCO RLE, {"size": [H, W], "counts": str}, of each segment."""
        return [rle_from_crop(crop, self.image_size) for crop in self.crops]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: image_size, and segments with a mask (COCO RLE) each."""
        pairs = zip(self.segments, self.rle(), strict=True)
        return {
            "image_size": list(self.image_size),
            "segments": [segment.to_dict() | {"mask": rle} for segment, rle in pairs],
        }

    def to_json(self) -> str:
        """`to_dict` as a JSON text; `from_json` reads it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, source: str | bytes | PathLike[str]) -> "PanopticSegmentation":
        """The segmentation in a text of `to_json`, or in the file of a Path, without the image.

        Its `instances` are the things, with the pixels that are theirs in `id_map`.

        Raises:
            InputError: it is anything else; the message names the field.
        """
        from condinst_infer.results.json_format import PANOPTIC, parse

        data = parse(source, PANOPTIC, "panoptic")
        height, width = data["image_size"]
        rows: list[dict[str, Any]] = data["segments"]
        rles = [row["mask"] for row in rows]
        crops = crops_from_rles(rles, data["image_size"], "panoptic.segments.mask")
        id_map = np.zeros((height, width), dtype=np.int32)
        segments, things = [], []
        for k, (row, crop) in enumerate(zip(rows, crops, strict=True)):
            h, w = crop.shape
            place = id_map[crop.y : crop.y + h, crop.x : crop.x + w]
            if place[crop.mask].any():
                raise InputError(f"panoptic.segments[{k}].mask overlaps another segment.")
            place[crop.mask] = row["id"]
            fields = {name: value for name, value in row.items() if name != "mask"}
            fields["box"] = tuple(row["box"])
            instance = len(things) if row["is_thing"] else None
            segments.append(PanopticSegment(**fields, instance=instance))
            if row["is_thing"]:
                things.append((segments[-1], crop))
        return cls(id_map, tuple(segments), _instances_from_things(things, (height, width)))

    def rows(self) -> list[dict[str, Any]]:
        """A row of plain values per segment, as `to_dataframe` and .csv files have them."""
        return [dict(zip(_COLUMNS, (*s[:5], *s.box, s.score), strict=True)) for s in self.segments]

    def to_dataframe(self) -> "DataFrame":
        """A pandas data frame with a row per segment.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", "dataframe")
        return pandas.DataFrame(self.rows(), columns=list(_COLUMNS))

    def save(self, path: str | Path) -> None:
        """Write the result to a file, whole or not at all; the suffix says what.

        .png and .jpg: the overlay of `plot` (`write_png` writes the ids); .json: `to_json`;
        .csv: a row per segment.

        Raises:
            InputError: another suffix, the file can't be written, or there is no image to draw on.
        """
        from condinst_infer.results.files import save_result

        save_result(Path(path), self.plot, {".json": self.to_json, ".csv": self._csv})

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

    def to_coco_record(self, image_id: int) -> dict[str, Any]:
        """Entries of COCO's segments_info with their RLEs, as JSON lines and shards hold them."""
        infos = self.to_coco(image_id, "")["segments_info"]
        pairs = zip(infos, self.rle(), strict=True)
        return {"segments": [info | {"segmentation": rle} for info, rle in pairs]}

    def to_coco(self, image_id: int, file_name: str) -> dict[str, Any]:
        """An entry of a COCO panoptic result file, whose PNG is `file_name`."""
        infos = []
        for segment in self.segments:
            x1, y1, x2, y2 = segment.box
            info = {
                "id": segment.id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
            }
            infos.append(info if segment.score is None else info | {"score": segment.score})
        return {"image_id": image_id, "file_name": file_name, "segments_info": infos}

    def write_png(self, path: str | Path) -> None:
        """Write the ids as COCO does: id = R + 256 G + 65536 B.

        Raises:
            InputError: the file can't be written, or is no .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"{path} can't be written: the ids of segments need a .png file.")
        write_id_png(path, self.id_map)

    def plot(
        self,
        image: np.ndarray | None = None,
        *,
        labels: bool | None = None,
        opacity: float = 0.5,
    ) -> NDArray[np.uint8]:
        """A picture of the segments on their image, BGR uint8 [H, W, 3].

        Args:
            image: BGR uint8 [H, W, 3] to draw on a copy of; the original by default.
            labels: write names, and scores of things; None does unless they would hide the image.
            opacity: of the filling, 0 to 1.

        Raises:
            InputError: there is no image, or it has another size.
        """
        from condinst_infer.results.draw import canvas_to_draw_on, overlay  # loads fonts

        canvas = canvas_to_draw_on(image, self.image, self.image_size)
        texts = []
        for segment in self.segments:
            score = "" if segment.score is None else f" {segment.score:.2f}"
            texts.append(segment.name + score)
        shown = len(self.segments) <= CROWD if labels is None else labels
        return overlay(canvas, self.crops, texts=texts if shown else None, opacity=opacity)


def _instances_from_things(
    things: Sequence[tuple[PanopticSegment, CroppedMask]], image_size: tuple[int, int]
) -> Instances:
    """Instances of thing segments, with a class per name that occurs."""
    classes = {segment.name: segment.category_id for segment, _ in things}
    names = tuple(classes)
    return Instances(
        boxes=np.array([s.box for s, _ in things], dtype=np.float32).reshape(-1, 4),
        scores=np.array([s.score or 0.0 for s, _ in things], dtype=np.float32),
        labels=np.array([names.index(s.name) for s, _ in things], dtype=np.int32),
        crops=[crop for _, crop in things],
        image_size=image_size,
        class_names=names,
        category_ids=tuple(classes.values()),
    )
