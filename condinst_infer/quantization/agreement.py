"""How far the detections of one file are from another's, as one number and as counts."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from condinst_infer.config.model import InputConfig
from condinst_infer.contract.session import Session
from condinst_infer.errors import InputError
from condinst_infer.processing.preprocess import ImageSource, network_image, read_image, stacked
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification.compare import matched_slots

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """How the detections of a file differ from those of the reference.

    A detection weighs as much as its score is above the lowest the files report: one that comes
    or goes at that threshold weighs nothing.
    """

    loss: float  # percent of the weight that has no partner, or lies outside its partner's mask
    mask_iou: float  # mean over pairs
    above_09: float  # share of pairs whose masks have an IoU above 0.9
    detections: int  # of the reference
    lost: int  # of those, without a partner
    new: int  # of the other file, without a partner


class Compared(NamedTuple):
    """One image: weight that agrees, all weight, mask IoU of each pair, what has no partner."""

    agreed: float
    weight: float
    ious: list[float]
    lost: int
    new: int

    @property
    def loss(self) -> float:
        """Weight that does not agree."""
        return self.weight - self.agreed


class _Found(NamedTuple):
    """The detections of one image; masks at mask stride, one bit each."""

    outputs: dict[str, np.ndarray]
    bits: np.ndarray
    shape: tuple[int, ...]

    def masks(self) -> np.ndarray:
        """Bool [n, h, w]."""
        count = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.shape).astype(bool)


class Reference:
    """What one file finds in some images, to compare others with.

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
            bar = tqdm(feeds, desc=path.stem, unit="image", disable=None, delay=2)
            self._found = [_found(session, feed) for feed in bar]
        if not any(len(found.bits) for found in self._found):
            raise InputError(
                f"the model finds nothing in the {len(feeds)} calibration images, so there is "
                "nothing to judge int8 by; give images that show what it was trained for."
            )

    def compared(self, path: Path, images: Sequence[int] | None = None) -> list[Compared]:
        """The file `path` on the images of these numbers; None takes all."""
        numbers: Iterable[int] = range(len(self._feeds)) if images is None else images
        if images is None:
            numbers = tqdm(numbers, desc=path.stem, unit="image", disable=None, delay=2)
        with closing(OrtSession(path)) as session:
            return [
                _compared(self._found[i], _found(session, self._feeds[i]), self._floor)
                for i in numbers
            ]


def agreement(images: Sequence[Compared]) -> Agreement:
    """Over all images."""
    ious = np.array([iou for image in images for iou in image.ious])
    lost = sum(image.lost for image in images)
    return Agreement(
        loss=loss_of(images),
        mask_iou=float(ious.mean()) if len(ious) else 0.0,
        above_09=float((ious > 0.9).mean()) if len(ious) else 0.0,
        detections=len(ious) + lost,
        lost=lost,
        new=sum(image.new for image in images),
    )


def loss_of(images: Sequence[Compared]) -> float:
    """Percent of the weight that does not agree."""
    weight = sum(image.weight for image in images)
    return 100 * sum(image.loss for image in images) / weight if weight else 0.0


def spread(sources: Sequence[ImageSource], limit: int) -> list[ImageSource]:
    """At most `limit` of `sources`, from all of their length: neighbours look alike."""
    count = min(limit, len(sources))
    return [sources[i * len(sources) // count] for i in range(count)]


def feeds_of(
    sources: Sequence[ImageSource], config: InputConfig, size: tuple[int, int] | None
) -> list[dict[str, np.ndarray]]:
    """Each image as the inputs of a graph for one image, on a canvas of `size` or its own."""
    feeds = []
    for source in tqdm(sources, desc="reading", unit="image", disable=None, delay=2):
        pixels, canvas = network_image(read_image(source), config, size)
        images, sizes = stacked([pixels], canvas)
        feeds.append({"images": images, "image_sizes": sizes})
    return feeds


def _found(session: Session, feed: Feeds) -> _Found:
    outputs = session.run(feed)
    n = int(outputs["num_detections"][0])
    masks = outputs["masks"][0, :n] > 0.5
    names = ("num_detections", "boxes", "scores", "labels")
    return _Found({k: outputs[k].copy() for k in names}, np.packbits(masks), masks.shape)


def _compared(ours: _Found, theirs: _Found, floor: float) -> Compared:
    masks = ours.masks(), theirs.masks()
    weights = [
        (found.outputs["scores"][0, : found.shape[0]] - floor).clip(0) for found in (ours, theirs)
    ]
    agreed, ious = 0.0, []
    for a, b in matched_slots(ours.outputs, theirs.outputs, 0):
        union = (masks[0][a] | masks[1][b]).sum()
        ious.append(float((masks[0][a] & masks[1][b]).sum() / union) if union else 1.0)
        agreed += ious[-1] * float(weights[0][a] + weights[1][b])
    lost, new = (found.shape[0] - len(ious) for found in (ours, theirs))
    return Compared(agreed, float(sum(w.sum() for w in weights)), ious, lost, new)
