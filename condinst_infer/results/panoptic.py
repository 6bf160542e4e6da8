"""Panoptic segmentation of one image: instances in front, stuff behind them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from condinst_infer.errors import InputError
from condinst_infer.results.crop import CroppedMask
from condinst_infer.results.instances import CROWD, Instances
from condinst_infer.results.panoptic_png import write_id_png
from condinst_infer.results.rle import rle_from_crop


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
        data = self._asdict()
        del data["instance"]
        return data


@dataclass(frozen=True, eq=False)
class PanopticSegmentation:
    """The segments of one image; they don't overlap, and what belongs to none is void."""

    id_map: NDArray[np.int32]  # [H, W], 0 where void
    segments: tuple[PanopticSegment, ...]  # things, best score first, then stuff; ids are 1, 2, ...
    instances: Instances  # those at or above the threshold, the dropped ones too; masks overlap
    image: NDArray[np.uint8] | None = None  # the original, BGR [H, W, 3]; not a copy

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
