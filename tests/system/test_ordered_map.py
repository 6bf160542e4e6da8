"""Workers: results in order, little ahead of who takes them, and no thread left behind."""

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from condinst_infer.config.validation import check_workers
from condinst_infer.errors import ConfigError
from condinst_infer.system.ordered_map import groups, in_order

WAIT = 20  # seconds after which a test that hangs fails


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Counted:
    """Whole numbers from 0 without end; knows how many were taken, and by whom."""

    def __init__(self) -> None:
        self.taken = 0
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.taken += 1
            self.threads.add(threading.get_ident())
            yield number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_whatever_takes_longest(workers: int) -> None:
    def slow(item: int) -> int:
        time.sleep((0.03, 0, 0.002, 0.01)[item % 4])
        return item * item

    found = list(in_order(slow, range(23), workers=workers))
    assert found == [item * item for item in range(23)]
    assert list(in_order(slow, [], workers=workers)) == []
    assert list(in_order(slow, [5], workers=workers)) == [25]


@pytest.mark.parametrize("workers", [2, 3])
def test_all_workers_and_no_more_work_at_the_same_time(workers: int) -> None:
    together = threading.Barrier(workers)
    at_work, most = 0, 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        together.wait(WAIT)  # returns only when all are here
        with lock:
            at_work -= 1
        return item

    assert list(in_order(work, range(6 * workers), workers=workers)) == list(range(6 * workers))
    assert most == workers


def test_a_slow_item_does_not_stop_the_other_worker() -> None:
    others = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert others.wait(WAIT)
        elif item == 3:
            others.set()
        return item

    assert list(in_order(work, range(9), workers=2)) == list(range(9))


@pytest.mark.parametrize("workers", [2, 3])
def test_little_is_done_ahead_of_who_takes_the_results(workers: int) -> None:
    items, done = Counted(), []

    def work(item: int) -> int:
        time.sleep(0.002)
        done.append(item)
        return item

    with closing(in_order(work, items, workers=workers)) as results:
        assert items.taken == 0
        for got, item in enumerate(itertools.islice(results, 8)):
            time.sleep(0.01 * workers)  # time to run ahead
            # what was asked for, and two per worker less the one that is taken
            assert item == got and items.taken <= got + 2 * workers
            assert len(done) <= got + 2 * workers
        deadline = time.monotonic() + WAIT
        while len(done) < items.taken and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(done) == items.taken  # it is not the caller that works
    assert items.threads == {threading.get_ident()}


def test_one_worker_is_the_caller_and_does_nothing_ahead() -> None:
    items, threads = Counted(), []

    def work(item: int) -> int:
        threads.append(threading.get_ident())
        return item

    with closing(in_order(work, items, workers=1)) as results:
        for got, item in enumerate(itertools.islice(results, 4)):
            assert item == got and items.taken == got + 1
    assert set(threads) == {threading.get_ident()}


def test_a_result_does_not_wait_for_items_that_come_slowly() -> None:
    taken = []

    def slowly() -> Iterator[int]:
        for item in range(6):
            time.sleep(0.05)
            taken.append(item)
            yield item

    with closing(in_order(str, slowly(), workers=3)) as results:
        assert next(results) == "0" and len(taken) < 6


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_failure_comes_in_the_place_of_its_result(workers: int) -> None:
    done = []

    def work(item: int) -> int:
        time.sleep(0.01 * (item == 2))  # what fails later is done sooner
        if item in (4, 5):
            raise ValueError(item)
        done.append(item)
        return item

    got = []
    with pytest.raises(ValueError, match="4"):
        for item in in_order(work, Counted(), workers=workers):
            got.append(item)
    assert got == [0, 1, 2, 3]
    assert max(done) < 4 + 2 * workers  # nothing is done any more


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_closing_early_gives_up_what_has_not_begun(workers: int) -> None:
    begun, items = [], Counted()
    go = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            time.sleep(0.05)  # so that as much as may be is waiting
        else:
            assert go.wait(WAIT)
        return item

    results = in_order(work, items, workers=workers)
    assert next(results) == 0
    timer = threading.Timer(0.05, go.set)
    timer.start()
    results.close()  # waits for what has begun
    timer.join(WAIT)
    assert len(begun) <= 1 + workers and items.taken <= 2 * workers
    time.sleep(0.02)
    assert len(begun) <= 1 + workers
    assert list(results) == []


def test_nothing_starts_before_the_first_result_is_asked_for() -> None:
    items = Counted()
    in_order(str, items, workers=3)
    assert items.taken == 0


def test_an_interrupt_stops_all_workers() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.02)
        return item

    with pytest.raises(KeyboardInterrupt):
        for _ in in_order(work, Counted(), workers=2):
            pass
    assert max(begun) <= 3 + 2 * 2


def test_an_error_of_the_items_ends_it_and_leaves_no_thread() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="camera"):
        list(in_order(str, items(), workers=2))


def test_groups_are_of_one_size_but_the_last_and_taken_as_needed() -> None:
    assert list(groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(groups([1, 2], 2)) == [[1, 2]] and list(groups([], 2)) == []
    items = Counted()
    assert next(groups(items, 3)) == [0, 1, 2] and items.taken == 3


def test_workers_are_a_whole_number_from_one() -> None:
    for value in (0, -1, 1.5, "2", None):
        with pytest.raises(ConfigError, match="workers is"):
            check_workers(value)  # type: ignore[arg-type]
    check_workers(1)
