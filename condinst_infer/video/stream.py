"""Results of a source's frames, in order, while the next ones are decoded and worked on."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np

from condinst_infer.config.validation import check_whole
from condinst_infer.system.ordered_map import groups
from condinst_infer.video.sources import Frame, Source

Result = TypeVar("Result")
Work = Callable[[list[Frame]], Sequence[Result]]
Part = tuple[list[Frame], Future[Sequence[Result]]]


class FrameStream(Generic[Result]):
    """(frame, result) of each frame of a source, in its order; an iterator that owns the source.

    One thread decodes, `workers` threads work, and the thread that asks can do something else
    meanwhile. Of a file no frame is left out, and at most 2 * `workers` + 1 batches are on their
    way. Of a live source a free worker takes the next frame to come; those that come while all
    work are left out and counted, so nothing waits: `workers` + 1 frames are on their way.

    `source` tells what is known: `live`, `fps`, `count` (frames, None if unknown), and so far
    `broken`, `skipped` and `reconnected`.

    Args:
        source: an open source.
        work: the results of a few frames; several threads call it.
        workers: threads that work, at least 1.
        every: take every n-th frame only.
        batch: frames `work` is given at once; of a live source 1.

    Raises:
        what `work` raises and InputError of a source that is lost, in the place of the result.
    """

    def __init__(
        self,
        source: Source,
        work: Work[Result],
        *,
        workers: int = 1,
        every: int = 1,
        batch: int = 1,
    ) -> None:
        check_whole(workers=workers, every=every)
        self.source = source
        # knows nothing of this object, so that threads end when the last reference to it goes
        self._pairs = _pairs(source, work, workers, every, 1 if source.live else batch)

    def __repr__(self) -> str:
        source = self.source
        count = "live" if source.live else f"{source.count or 'unknown number of'} frames"
        rate = "" if source.fps is None else f" at {source.fps:g} frames/s"
        return f"<FrameStream: {source.name}, {count}{rate}>"

    def __iter__(self) -> Iterator[tuple[Frame, Result]]:
        return self

    def __next__(self) -> tuple[Frame, Result]:
        return next(self._pairs)

    def stop(self) -> None:
        """Take no more frames: the iterator ends after those on their way. From any thread."""
        self.source.stopped.set()

    def close(self) -> None:
        """End at once, and let the source go."""
        self._pairs.close()
        self.source.close()

    def __enter__(self) -> "FrameStream[Result]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def work_on_images(function: Callable[[list[np.ndarray]], Iterable[Result]]) -> Work[Result]:
    """`function` of a few images as work on their frames."""
    return lambda frames: list(function([frame.image for frame in frames]))


def _pairs(  # noqa: C901 - threads that share four objects: as classes it would be longer
    source: Source, work: Work[Result], workers: int, every: int, batch: int
) -> Generator[tuple[Frame, Result], None, None]:
    # one batch with who asks; of a file, also one in work and one waiting for each worker
    room = threading.Semaphore(workers + 1 if source.live else batch * (2 * workers + 1))
    idle = threading.Semaphore(workers)
    order: SimpleQueue[Part[Result] | Exception | None] = SimpleQueue()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="condinst-work")

    def submit(frames: list[Frame]) -> None:
        future = pool.submit(work, frames)
        if source.live:
            future.add_done_callback(lambda _: idle.release())
        order.put((frames, future))

    def has_room() -> bool:
        """Wait until there is room for a frame; a live source has some now, or does not wait."""
        if not source.live:
            return room.acquire()
        if not idle.acquire(blocking=False):
            return False
        if not room.acquire(blocking=False):
            idle.release()
            return False
        return True

    def read() -> None:
        end = None
        try:
            for frames in groups(_frames(source, every, has_room), batch):
                submit(frames)
        except Exception as error:  # for the one who asks
            end = error
        order.put(end)

    reader = threading.Thread(target=read, name="condinst-read", daemon=True)
    reader.start()
    try:
        while isinstance(part := order.get(), tuple):
            frames, results = part
            for pair in zip(frames, results.result(), strict=True):
                yield pair
                room.release()
        if part is not None:
            raise part
    finally:
        source.stopped.set()
        room.release()  # the reader may wait for it
        reader.join()
        pool.shutdown(cancel_futures=True)
        source.close()


def _frames(source: Source, every: int, has_room: Callable[[], bool]) -> Iterator[Frame]:
    """The frames of `source` that are not broken and for which there is room."""
    room = False  # kept after a broken frame
    while source.grab():
        if source.index % every:
            continue
        room = room or has_room()
        if source.stopped.is_set():
            return
        if not room:
            source.skipped += 1
            continue
        frame = source.retrieve()
        if frame is not None:
            room = False
            yield frame
