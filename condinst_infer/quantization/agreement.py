"""Agreement of the detections of two files, as one number and as counts."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from condinst_infer.config.model import InputConfig
from condinst_infer.contract.session import Session
from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import (
    ImageSource,
    network_image,
    read_image,
    stack_images,
)
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.system.progress import progress
from condinst_infer.verification.compare import match_slots

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """Differences of the detections of a file from those of the reference.

    A detection weighs as much as its score is above the lowest the files report: one that comes
    or goes at that threshold weighs nothing.
    """

    disagreement_percent: float  # weight without a partner, or outside the partner's mask
    mask_iou: float  # mean over pairs
    above_09: float  # share of pairs whose masks have an IoU above 0.9
    detections: int  # of the reference
    lost: int  # of those, without a partner
    new: int  # of the other file, without a partner


class ImageAgreement(NamedTuple):
    """The agreement on one image; a detection weighs as `Agreement` says."""

    agreeing_weight: float
    weight: float
    ious: list[float]  # of the masks of each pair
    lost: int
    new: int

    @property
    def disagreeing_weight(self) -> float:
        """Weight without a partner, or outside the partner's mask."""
        return self.weight - self.agreeing_weight


class _Detections(NamedTuple):
    """The detections of one image; masks at mask stride, one bit each."""

    outputs: dict[str, np.ndarray]
    bits: np.ndarray
    shape: tuple[int, ...]

    def masks(self) -> np.ndarray:
        """Bool [n, h, w]."""
        count = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.shape).astype(bool)


class Reference:
    """Detections of one file in some images, to compare other files with.

    Args:
        path: an exported full graph of dynamic batch.
        feeds: its inputs, one image each.

    Raises:
        InputError: it finds nothing in any of them.
    """

    def __init__(self, path: Path, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        with closing(OrtSession(path)) as session:
            self._floor = session.metadata.config.reported_floor
            bar = progress(feeds, "image", description=path.stem)
            self._found = [_detect(session, feed) for feed in bar]
        if not any(len(found.bits) for found in self._found):
            raise InputError(
                f"the model finds nothing in the {len(feeds)} calibration images, so there is "
                "nothing to judge int8 by; give images that show what it was trained for."
            )

    def compare(self, path: Path, images: Sequence[int] | None = None) -> list[ImageAgreement]:
        """The file `path` on the images of these numbers; None takes all."""
        numbers: Iterable[int] = range(len(self._feeds)) if images is None else images
        if images is None:
            numbers = progress(numbers, "image", description=path.stem)
        with closing(OrtSession(path)) as session:
            return [
                _compare_image(self._found[i], _detect(session, self._feeds[i]), self._floor)
                for i in numbers
            ]


def agreement(images: Sequence[ImageAgreement]) -> Agreement:
    """Sum up the agreement of all images."""
    ious = np.array([iou for image in images for iou in image.ious])
    lost = sum(image.lost for image in images)
    return Agreement(
        disagreement_percent=disagreement_percent(images),
        mask_iou=float(ious.mean()) if len(ious) else 0.0,
        above_09=float((ious > 0.9).mean()) if len(ious) else 0.0,
        detections=len(ious) + lost,
        lost=lost,
        new=sum(image.new for image in images),
    )


def disagreement_percent(images: Sequence[ImageAgreement]) -> float:
    """Percent of the weight of all images that does not agree."""
    weight = sum(image.weight for image in images)
    return 100 * sum(image.disagreeing_weight for image in images) / weight if weight else 0.0


def spread(sources: Sequence[ImageSource], limit: int) -> list[ImageSource]:
    """At most `limit` of `sources`, from all of their length: neighbours look alike."""
    count = min(limit, len(sources))
    return [sources[i * len(sources) // count] for i in range(count)]


def feeds_of(
    sources: Sequence[ImageSource], config: InputConfig, size: tuple[int, int] | None
) -> list[dict[str, np.ndarray]]:
    """Each image as the inputs of a graph for one image, on a canvas of `size` or its own."""
    feeds = []
    for source in progress(sources, "image", description="reading"):
        pixels, canvas = network_image(read_image(source), config, size)
        images, sizes = stack_images([pixels], canvas)
        feeds.append({"images": images, "image_sizes": sizes})
    return feeds


def _detect(session: Session, feed: Feeds) -> _Detections:
    outputs = session.run(feed)
    n = int(outputs["num_detections"][0])
    masks = outputs["masks"][0, :n] > 0.5
    names = ("num_detections", "boxes", "scores", "labels")
    return _Detections({k: outputs[k].copy() for k in names}, np.packbits(masks), masks.shape)


def _compare_image(ours: _Detections, theirs: _Detections, floor: float) -> ImageAgreement:
    masks = ours.masks(), theirs.masks()
    weights = [
        (found.outputs["scores"][0, : found.shape[0]] - floor).clip(0) for found in (ours, theirs)
    ]
    agreed, ious = 0.0, []
    for a, b in match_slots(ours.outputs, theirs.outputs, 0):
        union = (masks[0][a] | masks[1][b]).sum()
        ious.append(float((masks[0][a] & masks[1][b]).sum() / union) if union else 1.0)
        agreed += ious[-1] * float(weights[0][a] + weights[1][b])
    lost, new = (found.shape[0] - len(ious) for found in (ours, theirs))
    return ImageAgreement(agreed, float(sum(w.sum() for w in weights)), ious, lost, new)
