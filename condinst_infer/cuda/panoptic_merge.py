"""The panoptic merge of a batch on the device: its buffers, its kernels, owners on the host."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import PanopticConfig
from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.download import HostCopy
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing.geometry import PlacedImage

_CLASSES = 256


class _Room(NamedTuple):
    """Buffer sizes of one image, in elements."""

    pixels: int
    words: int

    @staticmethod
    def of(image_size: Sequence[int]) -> "_Room":
        height, width = image_size
        return _Room(height * width, height * (-(-width // 32) + 1))


class PanopticMerge:
    """Owners of the pixels of a batch, as `merge` numbers them, instances by their slot."""

    def __init__(self, stream: Stream, slots: int, *, check_boxes: bool) -> None:
        """`check_boxes`: an instance needs a box with some area in the image."""
        self._stream, self._check_boxes = stream, check_boxes
        self._areas = stream.empty((slots, _CLASSES), np.int32)
        self._owners = stream.empty((0,), np.uint16)
        self._taken = stream.empty((0,), np.uint32)
        self._host = stream.allocate_pinned((0,), np.uint16)

    def has_room(self, batch: Sequence[PlacedImage]) -> bool:
        """True if the buffers are large enough."""
        pixels, words = _totals(batch)
        return pixels <= prod(self._owners.shape) and words <= prod(self._taken.shape)

    def make_room(self, batch: Sequence[PlacedImage]) -> None:
        """Larger buffers; nothing may use the former ones any more."""
        stream, (pixels, words) = self._stream, _totals(batch)
        stream.free(self._owners, self._taken)
        stream.free_pinned(self._host)
        self._owners = stream.empty((pixels,), np.uint16)
        self._taken = stream.empty((words,), np.uint32)
        self._host = stream.allocate_pinned((pixels,), np.uint16)

    def run(
        self,
        batch: Sequence[PlacedImage],
        report: HostCopy,
        semantic: DeviceArray,
        settings: PanopticConfig,
    ) -> None:
        """Put the merge and the copy of its result on the stream.

        Args:
            batch: for whose sizes there is room.
            report: of the same batch, its masks pasted.
            semantic: logits [N, C, h, w].
            settings: `config.panoptic`, with thresholds of the caller's.
        """
        stream, k = self._stream, report["scores"].shape[1]
        pixels, words = _totals(batch)
        owned = self._owners.view((pixels,))
        for array in (owned, self._taken.view((words,)), self._areas):
            stream.fill(array, 0)
        pixel = word = 0
        for i, placed in enumerate(batch):
            image_size = placed.image.shape[:2]
            room = _Room.of(image_size)
            owners = self._owners.view((room.pixels,), offset_bytes=2 * pixel)
            taken = self._taken.view((room.words,), offset_bytes=4 * word)
            areas, logits = self._areas[i], semantic[i]
            sizes: dict[str, Any] = {
                "k": k,
                "net_size": placed.net_size,
                "image_size": image_size,
            }
            things = kernels.owners_of_things(
                **sizes,
                score_threshold=settings.instance_threshold,
                overlap_threshold=settings.overlap_threshold,
                check_boxes=self._check_boxes,
            )
            names = ("crops", "num_detections", "boxes", "scores")
            slots = [report["bits"], *(report[name][i] for name in names)]
            stream.launch(things, slots, [taken, owners])
            stuff = kernels.add_stuff(**sizes, shape=logits.shape, dtype=logits.dtype)
            stream.launch(stuff, [logits], [areas, owners])
            small = kernels.drop_small_stuff(
                k=k, image_size=image_size, stuff_area_limit=settings.stuff_area_limit
            )
            stream.launch(small, [areas], [owners])
            pixel, word = pixel + room.pixels, word + room.words
        stream.download(self._host[:pixels], owned)

    def contents(self, batch: Sequence[PlacedImage]) -> list[np.ndarray]:
        """Copies of the owners uint16 [H, W] of each image, once the stream has come there."""
        found, pixel = [], 0
        for placed in batch:
            height, width = placed.image.shape[:2]
            part = self._host[pixel : pixel + height * width]
            found.append(part.reshape(height, width).copy())
            pixel += height * width
        return found

    def close(self) -> None:
        """Free everything."""
        self._stream.free(self._areas, self._owners, self._taken)
        self._stream.free_pinned(self._host)


def _totals(batch: Sequence[PlacedImage]) -> tuple[int, int]:
    rooms = [_Room.of(placed.image.shape[:2]) for placed in batch]
    return sum(room.pixels for room in rooms), sum(room.words for room in rooms)
