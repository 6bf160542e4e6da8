"""Work of many requests, done by a few threads, several requests at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Job(NamedTuple, Generic[Item, Result]):
    item: Item
    future: "Future[Result]"
    since: float


class Batcher(Generic[Item, Result]):
    """Does `work` on what is submitted; its length is how many items wait for a thread.

    Args:
        work: gives the result of each item, or the exception in its place; several threads call
            it, and what it raises is the result of all its items.
        workers: threads.
        batch: most items of one call.
        wait_s: how long an item waits at most for others to come, while a thread is free.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result | Exception]],
        *,
        workers: int,
        batch: int,
        wait_s: float,
    ) -> None:
        self._work, self._batch, self._wait_s = work, batch, wait_s
        self._jobs: deque[_Job[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._turn = threading.Lock()  # of the one thread that collects a batch
        self._closing = False
        self._call_s: list[float | None] = [None] * workers  # age of the call of each thread
        self._threads = [
            threading.Thread(target=self._run, args=[k], name=f"condinst-serve-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def alive(self) -> bool:
        """True if work is still taken, and all threads are there to do it."""
        return not self._closing and all(thread.is_alive() for thread in self._threads)

    def submit(self, item: Item) -> "Future[Result]":
        """The result of `item`, later; who cancels it in time saves the work."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("this batcher is closed")
            self._jobs.append(_Job(item, future, time.monotonic()))
            self._changed.notify_all()
        future.add_done_callback(self._forget)
        return future

    def age_calls(self, seconds: float) -> None:
        """Let `seconds` pass for the calls of `work` in progress.

        Whoever watches them calls this, so that time in which the process was stopped or the
        machine slept makes no call look as if it hangs.
        """
        with self._changed:
            self._call_s = [age if age is None else age + seconds for age in self._call_s]

    def hanging(self, limit_s: float) -> int:
        """Number of threads whose call is older than `limit_s`, or that have died."""
        with self._changed:
            pairs = zip(self._threads, self._call_s, strict=True)
            return sum(not thread.is_alive() or (age or 0) > limit_s for thread, age in pairs)

    def close(self, limit_s: float | None = None) -> bool:
        """Do what was submitted, then end the threads; a second call does nothing.

        Args:
            limit_s: how long to wait for the threads; None waits for ever.

        Returns:
            True if all threads have ended; no one can end those that hang.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = None if limit_s is None else time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _forget(self, future: "Future[Result]") -> None:
        """Let go of a cancelled job, which else would hold its item until a thread is free."""
        if future.cancelled():
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job.future is not future)

    def _run(self, thread: int) -> None:
        while self._do(self._take_batch(), thread):
            pass

    def _take_batch(self) -> list[_Job[Item, Result]]:
        """The next jobs to do together; none when there will be no more."""
        with self._turn, self._changed:
            while self._jobs or not self._closing:
                left = self._jobs[0].since + self._wait_s - time.monotonic() if self._jobs else None
                ready = len(self._jobs) >= self._batch or self._closing
                if left is None or (left > 0 and not ready):
                    self._changed.wait(left)
                    continue
                return [self._jobs.popleft() for _ in range(min(self._batch, len(self._jobs)))]
            return []

    def _do(self, jobs: list[_Job[Item, Result]], thread: int) -> bool:
        """Do them; False if there are none."""
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        results = self._results([job.item for job in wanted], thread) if wanted else []
        for job, result in zip(wanted, results, strict=True):
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)
        return bool(jobs)

    def _results(self, items: list[Item], thread: int) -> Sequence[Result | Exception]:
        self._set_age(thread, 0.0)
        try:
            return self._work(items)
        except Exception as error:  # a thread outlives whatever its work does
            return [error] * len(items)
        except BaseException as error:  # a panic of Rust code is one
            return [RuntimeError(f"{type(error).__name__}: {error}")] * len(items)
        finally:
            self._set_age(thread, None)

    def _set_age(self, thread: int, age: float | None) -> None:
        with self._changed:
            self._call_s[thread] = age
