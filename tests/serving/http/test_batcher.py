"""The threads behind the door: what they take together, and that nothing stops them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest

from condinst_infer.serving.http.batcher import Batcher


@contextmanager
def batcher(work: Any, **options: Any) -> Iterator[Batcher[Any, Any]]:
    made = Batcher(work, **({"workers": 1, "batch": 1, "wait_s": 0.0} | options))
    try:
        yield made
    finally:
        made.close()


def doubled(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def test_what_waits_is_taken_together_but_no_more_than_a_batch() -> None:
    begun, free, calls = threading.Event(), threading.Event(), []

    def work(items: list[int]) -> list[int]:
        begun.set()
        assert free.wait(20)
        calls.append(items)
        return doubled(items)

    with batcher(work, batch=4) as made:
        first = made.submit(0)
        assert begun.wait(20)
        rest = [made.submit(k) for k in range(1, 8)]
        assert len(made) == 7
        free.set()
        assert [one.result(20) for one in [first, *rest]] == [2 * k for k in range(8)]
    assert calls == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_free_thread_waits_for_more_but_not_longer_than_it_may() -> None:
    calls: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        calls.append(items)
        return doubled(items)

    with batcher(work, workers=3, batch=2, wait_s=1.0) as made:
        start = time.monotonic()
        assert made.submit(1).result(20) == 2
        alone = time.monotonic() - start
        start = time.monotonic()
        pair = [made.submit(2), made.submit(3)]
        assert [one.result(20) for one in pair] == [4, 6]
        together = time.monotonic() - start
    assert calls == [[1], [2, 3]]
    assert 1.0 <= alone and together < 1.0


def test_workers_work_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def work(items: list[int]) -> list[int]:
        both.wait(20)
        return doubled(items)

    with batcher(work, workers=2) as made:
        assert [one.result(20) for one in [made.submit(1), made.submit(2)]] == [2, 4]


def test_what_is_cancelled_is_let_go_and_not_done() -> None:
    begun, free, calls = threading.Event(), threading.Event(), []

    def work(items: list[int]) -> list[int]:
        begun.set()
        assert free.wait(20)
        calls.append(items)
        return doubled(items)

    with batcher(work) as made:
        jobs = [made.submit(k) for k in range(3)]
        assert begun.wait(20)
        assert jobs[1].cancel() and len(made) == 1
        assert not jobs[0].cancel()  # it is in work
        free.set()
        assert jobs[2].result(20) == 4
    with pytest.raises(CancelledError):
        jobs[1].result(20)
    assert calls == [[0], [2]]


def test_errors_belong_to_their_items_and_threads_outlive_them() -> None:
    def work(items: list[int]) -> list[Any]:
        if 13 in items:
            raise MemoryError("all")
        return [ValueError("one") if item < 0 else 2 * item for item in items]

    with batcher(work, batch=2, wait_s=5.0) as made:
        good, bad = made.submit(1), made.submit(-1)
        assert good.result(20) == 2
        with pytest.raises(ValueError, match="one"):
            bad.result(20)
        for one in [made.submit(13), made.submit(1)]:
            with pytest.raises(MemoryError, match="all"):
                one.result(20)
        assert made.alive
        assert [one.result(20) for one in [made.submit(4), made.submit(5)]] == [8, 10]


def test_closing_does_what_was_submitted_and_then_nothing() -> None:
    with batcher(doubled, batch=8, wait_s=60) as made:
        jobs = [made.submit(k) for k in range(3)]
        made.close()
        assert [one.result(0) for one in jobs] == [0, 2, 4]
        assert not made.alive
        with pytest.raises(RuntimeError, match="closed"):
            made.submit(1)
    assert not [one for one in threading.enumerate() if one.name.startswith("condinst-serve")]


def test_what_python_does_not_call_an_error_is_the_result_too() -> None:
    class Panic(BaseException):
        """As of a library in Rust."""

    def work(items: list[int]) -> list[int]:
        raise Panic("inside")

    with batcher(work) as made:
        for _ in range(2):  # the thread outlives the first
            with pytest.raises(RuntimeError, match="Panic: inside"):
                made.submit(1).result(20)
        made.age_calls(1.0)
        assert made.hanging(0) == 0


def test_a_call_that_does_not_return_hangs_until_it_does() -> None:
    begun, free = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int]:
        begun.set()
        assert free.wait(20)
        return doubled(items)

    with batcher(work, workers=2) as made:
        job = made.submit(1)
        assert begun.wait(20)
        made.age_calls(4.0)
        assert (made.hanging(3.9), made.hanging(4.0)) == (1, 0)  # the other thread has no work
        made.age_calls(4.0)
        assert made.hanging(7.9) == 1
        assert not made.close(0.01)
        free.set()
        assert job.result(20) == 2 and made.close(20)
        assert made.hanging(100.0) == 2  # both have ended
