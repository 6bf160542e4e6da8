"""One function on many items in several threads, with results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice
from typing import TypeVar

from condinst_infer.system.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PER_WORKER = 2  # one in work and one done or waiting, so that a slow item stops no other worker


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Generator[Result, None, None]:
    """`function` of each item, in the order of `items`.

    The thread that asks for results also takes the items, one by one, and at most 2 * `workers`
    of them are on their way: in work, or done and not yet asked for. One worker is that thread
    itself and does nothing ahead. No thread is left when the iterator ends, fails or is closed.

    Raises:
        what `function` raises, in the place of the result; the items after it are given up.
    """
    if workers == 1:
        for item in items:
            yield function(item)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="condinst")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            # what is done goes out at once, also where items come slowly
            if len(waiting) == _PER_WORKER * workers or waiting[0].done():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for what is in work


def flat(
    parts: Generator[tuple[list[Result], Exception | None], None, None],
) -> Generator[Result, None, None]:
    """The results of `parts`, and the first failure in its place."""
    with closing(parts):
        for results, failure in parts:
            yield from results
            if failure is not None:
                raise failure


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last of what is left."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def run_over_images(
    run_batch: Callable[[list[Item]], Iterable[Result]],
    images: Sequence[Item],
    batch: int,
    workers: int,
) -> Generator[Result, None, None]:
    """The results of `run_batch` for all images, in order, with a progress bar.

    Args:
        run_batch: gives the result of each of at most `batch` images; several threads call it.
    """
    parts = groups(images, batch)
    with (
        closing(in_order(run_batch, parts, workers=workers)) as done,
        progress_bar(len(images), "image") as bar,
    ):
        for result in chain.from_iterable(done):
            yield result
            bar.update()
