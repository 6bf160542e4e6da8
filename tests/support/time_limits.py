"""The time that tests have: more for slow ones, and an end for what pytest-timeout can not stop.

pytest-timeout raises an exception in the main thread. Code of a C library that never returns does
not see it, and a thread that never ends keeps the interpreter from exiting.
"""

import faulthandler
import os
from collections.abc import Iterator, Sequence

import pytest

SLOW_S = 1800  # of tests marked slow or long; a network of the papers takes minutes on two cores
GRACE_S = 60  # past the limit of a test, and for the interpreter to exit


class TimeLimits:
    """A plugin of pytest; where the time is up it writes every thread's stack to stderr."""

    def __init__(self) -> None:
        self._stderr = os.dup(2)  # nothing is captured yet

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            slow = item.get_closest_marker("slow") or item.get_closest_marker("long")
            if slow and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(SLOW_S))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        limit = limit_of(item)
        if limit:
            self._end_after(limit + GRACE_S)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def pytest_unconfigure(self) -> None:
        self._end_after(GRACE_S)

    def _end_after(self, seconds: float) -> None:
        """Exit with status 1 after a while, whatever the threads do by then."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stderr)


def limit_of(item: pytest.Item) -> float:
    """Seconds that `item` has; 0 is no limit."""
    if (marker := item.get_closest_marker("timeout")) is not None:
        return float(marker.args[0])
    given = item.config.getoption("timeout")
    return float(item.config.getini("timeout") if given is None else given)
