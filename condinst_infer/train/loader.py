"""Batches of training images: for the same seed the same ones, wherever they are made."""

import functools
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from condinst_infer.config.model import SEMANTIC_STRIDE, CondInstConfig
from condinst_infer.errors import InputError
from condinst_infer.processing.geometry import canvas_size
from condinst_infer.processing.preprocess import read_image, stack_images
from condinst_infer.results.crop import CroppedMask, boxes_from_crops
from condinst_infer.results.draw import overlay
from condinst_infer.train.augment import AugmentConfig, augment, augment_map
from condinst_infer.train.records import CocoData, crops_from_record, owners_from_record
from condinst_infer.train.targets import IGNORED, GroundTruth, ground_truth, sample_at_stride


class Sample(NamedTuple):
    """One augmented image."""

    name: str  # file name, for messages
    image: np.ndarray  # BGR uint8 [h, w, 3]
    masks: np.ndarray  # bool [G, h, w], none empty
    labels: np.ndarray  # int64 [G]
    stuff: np.ndarray | None = None  # int16 [h, w] of panoptic data: see GroundTruth.stuff

    def plot(self) -> np.ndarray:
        """The image with its objects drawn on it, BGR uint8 [h, w, 3]."""
        return overlay(self.image, crops_from_masks(self.masks))


class Batch(NamedTuple):
    """Images and ground truth for one step of one process."""

    names: tuple[str, ...]
    images: Tensor  # uint8 [N, H, W, 3], BGR
    image_sizes: Tensor  # int32 [N, 2]
    truths: tuple[GroundTruth, ...]


def crops_from_masks(masks: np.ndarray) -> list[CroppedMask]:
    """Bool masks [G, h, w] of whole images as crops that are not tight."""
    return [CroppedMask(0, 0, mask) for mask in masks]


class TrainingImages(Dataset[Sample]):
    """The endless stream of samples: item `p` depends on the data, the seed and `p` alone.

    Each pass over the data has an order of its own. So a run that goes on at iteration i, or on
    more processes, sees what an uninterrupted one would.
    """

    def __init__(self, data: CocoData, settings: AugmentConfig, *, seed: int) -> None:
        self.data, self.settings, self.seed = data, settings, seed

    def __getitem__(self, position: int) -> Sample:
        count = len(self.data.records)
        order = _order(self.seed, position // count, count)
        record = self.data.records[order[position % count]]
        image = read_image(record.path)
        if image.shape[:2] != record.size:
            raise InputError(
                f"{record.path} is {image.shape[1]} x {image.shape[0]} pixels, but its annotations "
                f"say {record.size[1]} x {record.size[0]}; turn it upright or correct the file."
            )
        rng = np.random.default_rng([self.seed, 1, position])
        labels = np.array([a.label for a in record.annotations], np.int64)
        stuff = None
        if record.panoptic is None:
            image, masks = augment(image, crops_from_record(record), rng, self.settings)
        else:
            owners = owners_from_record(record, self.data.stuff_ids)
            image, owners = augment_map(image, owners, rng, self.settings)
            masks = owners == np.arange(1, len(labels) + 1, dtype=np.uint16)[:, None, None]
            channels = range(1, len(self.data.stuff_ids) + 1)
            stuff = np.array([IGNORED, *[0] * len(labels), *channels], np.int16)[owners]
        seen = masks.any((1, 2))
        return Sample(str(record.path), image, masks[seen], labels[seen], stuff)


@functools.lru_cache(maxsize=2)  # a batch can lie across two passes
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """The order in which pass `turn` over the data shows its `count` images."""
    return np.random.default_rng([seed, 0, turn]).permutation(count)


class Positions(Sampler[list[int]]):
    """The positions of one process's batches, from `start` up to `stop` batches."""

    def __init__(self, start: int, stop: int, *, batch: int, rank: int, processes: int) -> None:
        self.start, self.stop = start, stop
        self.batch, self.rank, self.processes = batch, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.processes + self.rank) * self.batch
            yield list(range(first, first + self.batch))

    def __len__(self) -> int:
        return self.stop - self.start


class Collate:
    """Turns samples into a batch on the smallest canvas that holds them all."""

    def __init__(self, config: CondInstConfig) -> None:
        self.divisor = config.input.size_divisor
        self.strides = {
            "mask_stride": config.mask.mask_stride,
            "feature_stride": config.mask_feature_stride,
        }

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        height = max(sample.image.shape[0] for sample in samples)
        width = max(sample.image.shape[1] for sample in samples)
        canvas = canvas_size((height, width), self.divisor)
        images, sizes = stack_images([sample.image for sample in samples], canvas)
        return Batch(
            tuple(sample.name for sample in samples),
            torch.from_numpy(images),
            torch.from_numpy(sizes),
            tuple(self._truth(sample, canvas) for sample in samples),
        )

    def _truth(self, sample: Sample, canvas: tuple[int, int]) -> GroundTruth:
        masks = np.zeros((len(sample.masks), *canvas), bool)
        masks[:, : sample.image.shape[0], : sample.image.shape[1]] = sample.masks
        truth = ground_truth(
            torch.from_numpy(masks),
            torch.from_numpy(boxes_from_crops(crops_from_masks(sample.masks), len(sample.masks))),
            torch.from_numpy(sample.labels),
            **self.strides,
        )
        if sample.stuff is None:
            return truth
        stuff = np.full(canvas, IGNORED, np.int16)
        stuff[: sample.stuff.shape[0], : sample.stuff.shape[1]] = sample.stuff
        return truth._replace(
            stuff=sample_at_stride(torch.from_numpy(stuff), SEMANTIC_STRIDE).long()
        )


def training_batches(
    images: TrainingImages,
    config: CondInstConfig,
    positions: Positions,
    *,
    workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of one process; `workers` other processes make them ahead of time.

    Close it at the end.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=positions,
        collate_fn=Collate(config),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
    )
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # a forked worker would wait for threads that it does not have
    before = active_children()
    try:
        with _signals_later():
            batches = iter(loader)  # here, so that workers start with that one thread
        return _clearly(batches, [child for child in active_children() if child not in before])
    finally:
        cv2.setNumThreads(threads)


def _clearly(
    batches: Iterator[Batch], workers: Sequence[BaseProcess]
) -> Generator[Batch, None, None]:
    """`batches`, with errors from another process as in this one: torch adds its traceback.

    No worker is left when this ends or is closed.
    """
    try:
        yield from batches
    except (InputError, OSError) as error:
        raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
    finally:
        del batches  # asks the workers to end, and waits a few seconds
        for worker in workers:
            if worker.is_alive():  # it hangs; SIGTERM, by which torch ends it, is ignored
                worker.kill()
                worker.join()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back meanwhile; workers that start inherit that.

    Without it, a worker that a signal finds in its first milliseconds dies of it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_alarm_off(*, dropped: bool = False) -> Iterator[None]:
    """Let a worker that dies meanwhile raise its error after: torch raises it in any line.

    Args:
        dropped: raise no error after; the next batch, which is never there, does.
    """
    alarm = getattr(signal, "SIGCHLD", None)
    if alarm is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(alarm, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(alarm, before)
    if came and not dropped:
        signal.raise_signal(alarm)


def _prepare_worker(_worker: int) -> None:
    """A worker takes one core; when to stop is for the main process to say.

    A signal to the whole process group would otherwise end the workers before the main process
    has finished its iteration.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
