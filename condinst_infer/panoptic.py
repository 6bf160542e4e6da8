"""What every pixel of an image shows: instances in front, stuff behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.model import CondInstConfig, PanopticConfig
from condinst_infer.crop import CroppedMask, rle_from_crop
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.merge import add_stuff, owners_of_things, semantic_labels
from condinst_infer.postprocess import instances_from_outputs, kept_slots
from condinst_infer.result import CROWD, Instances
from condinst_infer.results.panoptic_png import write_id_png

Size = tuple[int, int]  # (height, width)


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
        """All of it but `instance`, for those who get no `instances`."""
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
    def crops(self) -> list[CroppedMask]:
        """The pixels of each segment, cut out."""
        return [
            CroppedMask(x1, y1, self.id_map[y1:y2, x1:x2] == segment.id)
            for segment in self.segments
            for x1, y1, x2, y2 in [segment.box]
        ]

    def rle(self) -> list[dict[str, Any]]:
        """A compressed COCO RLE, {"size": [H, W], "counts": str}, of each segment."""
        height, width = self.id_map.shape
        return [rle_from_crop(crop, (height, width)) for crop in self.crops]

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
        from condinst_infer.draw import overlay  # fonts, only for those who draw

        image = self.image if image is None else image
        if image is None:
            raise InputError("this result keeps no image to draw on; give one: plot(image)")
        if image.dtype != np.uint8 or image.shape != (*self.id_map.shape, 3):
            raise InputError(
                f"the image to draw on is {image.dtype} {image.shape}; "
                f"it must be uint8 {(*self.id_map.shape, 3)}."
            )
        texts = []
        for segment in self.segments:
            score = "" if segment.score is None else f" {segment.score:.2f}"
            texts.append(segment.name + score)
        shown = len(self.segments) <= CROWD if labels is None else labels
        return overlay(image, self.crops, texts=texts if shown else None, opacity=opacity)


def panoptic_from_outputs(
    outputs: Mapping[str, np.ndarray],
    index: int,
    *,
    net_size: Size,
    image: Any,
    config: CondInstConfig,
    settings: PanopticConfig,
    crops: Sequence[CroppedMask] | None = None,
    owners: np.ndarray | None = None,
) -> PanopticSegmentation:
    """The panoptic segmentation of one image of a batch.

    Args:
        outputs: of the full graph, with semantic [N, C, h, w] unless there are `owners`.
        index, net_size, image, config, crops: as in `instances_from_outputs`.
        settings: `config.panoptic`, with thresholds of the caller's.
        owners: what `merge` gives, where the merging is done: uint16 [H, W], of slots.

    Raises:
        ConfigError: the model has no semantic branch, or the instance threshold can't be honoured.
        SessionError: the outputs are not finite or out of range, so the runtime is broken.
    """
    if not config.is_panoptic:
        raise ConfigError(f"{config.name} has no semantic branch; panoptic presets have one.")
    height, width = image.shape[:2]
    threshold = settings.instance_threshold
    instances = instances_from_outputs(
        outputs,
        index,
        net_size=net_size,
        image=image,
        config=config,
        crops=crops,
        score_threshold=threshold,
    )
    if owners is None:
        k, numbers = len(instances), np.arange(len(instances))
        things = owners_of_things(instances.crops, (height, width), settings.overlap_threshold)
        labels = semantic_labels(
            outputs["semantic"][index],
            net_size=net_size,
            image_size=(height, width),
            needed=things == 0,
        )
        owners = add_stuff(things, labels, k, settings.stuff_area_limit)
    else:
        k = outputs["scores"].shape[1]
        numbers = kept_slots(
            outputs,
            index,
            net_size=net_size,
            image_size=(height, width),
            config=config,
            score_threshold=threshold,
            crops=crops or (),
        )
    return _segmentation(owners, k, numbers, instances, settings)


def _segmentation(
    owners: np.ndarray,
    k: int,
    numbers: np.ndarray,
    instances: Instances,
    settings: PanopticConfig,
) -> PanopticSegmentation:
    """The result whose pixels belong to `owners` [H, W], as `merge` numbers them.

    Args:
        k: the number of the last instance in `owners`.
        numbers: int [len(instances)], one less than the number of each in `owners`.
    """
    places = {int(number) + 1: place for place, number in enumerate(numbers)}
    areas = np.bincount(owners.ravel(), minlength=1)
    ids = np.zeros(len(areas), np.int32)
    found = np.flatnonzero(areas[1:]) + 1
    ids[found] = np.arange(1, len(found) + 1)
    segments = []
    for owner in found.tolist():
        corner, size = (0, 0), owners.shape
        if owner <= k:
            place = places[owner]
            crop = instances.crops[place]
            corner, size = (crop.x, crop.y), crop.mask.shape
            label = int(instances.labels[place])
            what = instances.category_ids[label], instances.names[place], True
            score = float(instances.scores[place])
        else:
            place = score = None
            stuff = owner - k - 1
            what = settings.stuff_ids[stuff], settings.stuff_names[stuff], False
        box = _box(owners, owner, corner, size)
        segments.append(
            PanopticSegment(len(segments) + 1, *what, int(areas[owner]), box, score, place)
        )
    return PanopticSegmentation(ids[owners], tuple(segments), instances, instances.image)


def _box(
    owners: np.ndarray, owner: int, corner: tuple[int, int], size: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """The box x1, y1, x2, y2 of the pixels of `owner`, all in the part at `corner` (x, y)."""
    left, top = corner
    part = owners[top : top + size[0], left : left + size[1]] == owner
    x, y, width, height = cv2.boundingRect(part.view(np.uint8))
    return left + x, top + y, left + x + width, top + y + height
