"""`Pipeline.stream` on live sources: the newest frame, reconnecting, and how they end."""

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.errors import InputError
from condinst_infer.video.sources import Frame
from tests.support.fake_session import FakeSession
from tests.support.numbered_source import Numbers, numbers, stream_of
from tests.support.video_files import left_edge, streaming
from tests.support.waiting import WAIT, eventually

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_live_source_a_free_worker_takes_the_newest_frame(workers: int) -> None:
    source = Numbers(60, live=True, pace=50)
    free = threading.Event()

    def work(frames: list[Frame]) -> list[int]:
        assert free.wait(WAIT)
        return numbers(frames)

    with stream_of(source, work, workers=workers, batch=8) as stream:
        taken = threading.Thread(target=lambda: found.append(next(stream)[1]))
        found: list[int] = []
        taken.start()
        assert source.reached.wait(WAIT)  # 50 frames came while the workers had one each
        assert source.retrieved == workers and source.skipped == 50 - workers
        free.set()
        taken.join()
        found += [next(stream)[1] for _ in range(workers - 1)]
        time.sleep(0.05)  # the workers are free, none has an old frame
        source.go.set()
        found += [number for _, number in itertools.islice(stream, 1)]
    assert found == [*range(workers), 50]


def test_live_results_that_nobody_takes_do_not_pile_up() -> None:
    source = Numbers(live=True)
    with stream_of(source, numbers) as stream:
        next(stream)
        before = source.index
        eventually(lambda: source.index > before + 1000)
        assert source.retrieved == 2  # that of who asks, and one for later
        assert source.skipped > 900


class SlowSession(FakeSession):
    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        time.sleep(0.1)
        return super().run(feeds)


def test_a_slow_model_keeps_up_with_a_live_stream() -> None:
    with streaming(80, 40) as (url, _):
        stream = ci.Pipeline(SlowSession()).stream(url, reconnect=0)
        assert stream.source.live and stream.source.count is None
        start, found, lags = time.monotonic(), [], []
        for frame, result in stream:
            assert frame.seconds is not None
            lags.append(time.monotonic() - start - frame.seconds)
            found.append(frame.index)
            assert abs(result.boxes[0, 0] - left_edge(frame.index)) <= 3
        seconds = time.monotonic() - start
    assert found == sorted(set(found)) and 5 < len(found) < 60
    assert stream.source.skipped == 80 - len(found) and stream.source.broken == 0
    # 80 frames would have taken 8 s; what is shown is never old
    assert seconds < 7 and max(lags) < 1.5


def test_a_live_stream_reconnects_until_it_is_lost(monkeypatch: Patch) -> None:
    monkeypatch.setattr("condinst_infer.video.sources.FIRST_PAUSE", 0.02)
    with streaming(6, 60) as (url, server):
        stream = ci.Pipeline(FakeSession()).stream(url.replace("//", "//me:secret@"), reconnect=2)
        found = []
        with pytest.raises(InputError) as caught:
            for frame, _ in stream:
                found.append(frame.index)
                if frame.index >= 13:  # of the third connection
                    server.kill()
        assert found == sorted(set(found)) and len(found) >= 3
        assert stream.source.reconnected >= 2
        text = str(caught.value)
        assert text.startswith(f"{url} broke off after ") and "2 attempts to reconnect" in text
        assert "secret" not in text


def test_a_stream_that_hangs_counts_as_broken_off(monkeypatch: Patch) -> None:
    monkeypatch.setattr("condinst_infer.video.sources.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("condinst_infer.video.sources.READ_TIMEOUT_MS", 300)
    with streaming(4, 60, hang=True) as (url, _):
        stream = ci.Pipeline(FakeSession()).stream(url)
        start = time.monotonic()
        for frame, _ in stream:
            if frame.index >= 4:
                stream.stop()
        assert stream.source.reconnected == 1 and time.monotonic() - start < WAIT


def test_stopping_ends_also_the_pause_before_an_attempt(monkeypatch: Patch) -> None:
    monkeypatch.setattr("condinst_infer.video.sources.FIRST_PAUSE", 1000.0)
    monkeypatch.setattr("condinst_infer.video.sources.LONGEST_PAUSE", 1000.0)
    with streaming(3, 60) as (url, _):
        stream = ci.Pipeline(FakeSession()).stream(url)
        timer = threading.Timer(0.5, stream.stop)
        timer.start()
        start = time.monotonic()
        assert 1 <= len(list(stream)) <= 3 and time.monotonic() - start < WAIT
        timer.join()
