"""`Pipeline.stream`: every frame of a file or folder, in order, and every way to end."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.video.sources import Frame, display_name, is_live, open_source
from tests.support.fake_session import FakeSession, assert_same, photograph
from tests.support.numbered_source import Numbers, numbers, stream_of
from tests.support.video_files import (
    FPS,
    SIDE,
    break_frames,
    left_edge,
    picture,
    truncate,
    write_video,
)
from tests.support.waiting import WAIT, eventually

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("suffix", "workers"), [(".mp4", 1), (".mp4", 3), (".avi", 2)])
def test_instances_follow_the_square(
    suffix: str, workers: int, bright_model: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / f"square{suffix}")
    with ci.load(bright_model, threads=1, workers=workers) as pipeline:
        found = list(pipeline.stream(path, workers=workers))
        assert [frame.index for frame, _ in found] == list(range(30))
        for number, (frame, result) in enumerate(found):
            assert frame.seconds == pytest.approx(number / FPS, abs=1e-3) and frame.path is None
            assert result.image is not None and np.shares_memory(result.image, frame.image)
            columns = np.flatnonzero(result.masks[0].any(axis=0))
            # the mask cells are 4 pixels wide, and the codec blurs the edge
            assert abs(columns[0] - left_edge(number)) <= 4
            assert abs(columns[-1] - left_edge(number) - SIDE) <= 4
        assert_same(found[7][1], pipeline(found[7][0].image))


def test_frames_fill_batches_and_options_reach_the_results(tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.avi", frames=10)
    for metadata, most, fed in (({"batch": 4}, 1, [4, 4, 4]), ({}, 3, [3, 3, 3, 1])):
        session = FakeSession(**metadata)
        with ci.Pipeline(session, max_batch=most) as pipeline:
            assert len(list(pipeline.stream(path))) == 10
            assert [len(feeds["images"]) for feeds in session.fed] == fed
            results = [result for _, result in pipeline.stream(path, classes=["bicycle"])]
            assert len(results) == 10 and not any(map(len, results))


def test_a_folder_gives_its_images_in_order_and_counts_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.png", "a/c.jpg", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), photograph((60, 90)))
    (tmp_path / "c.png").write_text("I am a text")
    stream = ci.Pipeline(FakeSession()).stream(tmp_path, workers=2)
    found = [(frame.index, frame.path, frame.seconds, len(result)) for frame, result in stream]
    names = ("a/c.jpg", "b.png", "d.png")
    assert found == [
        (index, tmp_path / name, None, 2) for index, name in zip((0, 1, 3), names, strict=True)
    ]
    assert (stream.source.count, stream.source.broken) == (4, 1) and "c.png" in caplog.text


def test_broken_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.avi")
    break_frames(path, range(10, 13))
    stream = ci.Pipeline(FakeSession()).stream(path)
    found = [frame for frame, _ in stream]
    assert [f.index for f in found] == [*range(10), *range(13, 30)] and stream.source.broken == 3
    for frame in found:
        assert frame.seconds == pytest.approx(frame.index / FPS, abs=1e-3)
        assert np.abs(frame.image.astype(int) - picture(frame.index)).mean() < 3


def test_a_file_that_ends_early_ends_and_says_what_is_missing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.avi")
    truncate(path, 0.6)
    stream = ci.Pipeline(FakeSession()).stream(path)
    found = [frame.index for frame, _ in stream]
    assert found == list(range(len(found))) and 5 < len(found) < 25
    assert stream.source.broken == 30 - len(found)


def test_every_nth_frame_keeps_its_number_and_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.mp4", frames=11)
    found = [frame for frame, _ in ci.Pipeline(FakeSession()).stream(path, every=4)]
    assert [f.index for f in found] == [0, 4, 8]
    assert found[2].seconds == pytest.approx(8 / FPS, abs=1e-3)


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (2, 1), (3, 2)])
def test_a_file_is_read_ahead_but_not_far(workers: int, batch: int) -> None:
    source = Numbers()
    most = batch * (2 * workers + 1)
    with stream_of(source, numbers, workers=workers, batch=batch) as stream:
        for got in range(1, 20):
            frame, number = next(stream)
            assert frame.index == number == got - 1 and source.retrieved < got + most
        eventually(lambda: source.retrieved == 19 - 1 + most)  # while nobody asks
        time.sleep(0.05)
        assert source.retrieved == 19 - 1 + most
    assert source.closed and source.skipped == 0


@pytest.mark.parametrize("workers", [2, 3])
def test_results_come_in_order_whatever_takes_longest(workers: int) -> None:
    def slow(frames: list[Frame]) -> list[int]:
        time.sleep((0.03, 0, 0.002, 0.01)[frames[0].index % 4])
        return numbers(frames)

    found = [(f.index, n) for f, n in stream_of(Numbers(23), slow, workers=workers)]
    assert found == [(n, n) for n in range(23)]


def test_decoding_work_and_the_asker_run_at_the_same_time() -> None:
    together = threading.Barrier(3)

    class Meeting(Numbers):
        def retrieve(self) -> Frame:
            if self.index == 2:
                together.wait(WAIT)
            return super().retrieve()

    def work(frames: list[Frame]) -> list[int]:
        if frames[0].index == 1:
            together.wait(WAIT)
        return numbers(frames)

    for frame, _ in stream_of(Meeting(4), work):
        if frame.index == 0:
            together.wait(WAIT)


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_finishes_what_is_on_its_way(workers: int) -> None:
    stream = stream_of(Numbers(), numbers, workers=workers)
    found = []
    for _, number in stream:
        found.append(number)
        if number == 5:
            stream.stop()
    assert found == list(range(len(found))) and len(found) <= 6 + 2 * workers + 1


@pytest.mark.parametrize("live", [False, True])
def test_threads_end_with_the_stream_however_it_is_left(live: bool) -> None:
    def threads() -> int:
        return sum(t.name.startswith("condinst") for t in threading.enumerate())

    for leave in ("close", "drop", "never begin"):
        source = Numbers(live=live)
        stream = stream_of(source, numbers, workers=2)
        if leave != "never begin":
            next(stream)
            assert threads()
        if leave == "drop":
            gc.disable()  # the last reference is enough
            del stream
            gc.enable()
        else:
            stream.close()
        assert not threads() and source.closed


def test_an_error_comes_in_the_place_of_its_result() -> None:
    def work(frames: list[Frame]) -> list[int]:
        if frames[0].index == 7:
            raise InputError("seven")
        return numbers(frames)

    found = []
    with pytest.raises(InputError, match="seven"):
        for _, number in stream_of(Numbers(), work, workers=3):
            found.append(number)
    assert found == list(range(7))


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    pipeline = ci.Pipeline(FakeSession(), max_pixels=5000)
    text = tmp_path / "text.mp4"
    text.write_text("I am a text")
    large = write_video(tmp_path / "large.mp4", frames=2)
    (tmp_path / "empty").mkdir()
    for source, words in (
        (tmp_path / "no.mp4", r"no\.mp4 does not exist"),
        (text, "can't be opened: OpenCV does not know its format, or it is damaged"),
        (tmp_path / "empty", "there are no images"),
        (large, r"160 x 96 = 15360 pixels.*max_pixels"),
        (9999, "camera:9999 can't be opened: there is no such camera"),
        ("camera:9999", "camera:9999 can't be opened"),
        ("http://me:secret@127.0.0.1:9/a?b=c", r"^http://127\.0\.0\.1:9/a can't be opened: there"),
        (3.5, "the source is a float"),
        (True, "the source is a bool"),
    ):
        with pytest.raises(InputError, match=words):
            pipeline.stream(source)  # type: ignore[arg-type]


def test_wrong_options_are_refused_at_once(tmp_path: Path) -> None:
    pipeline, path = ci.Pipeline(FakeSession()), write_video(tmp_path / "a.mp4", frames=2)
    for options, words in (
        ({"workers": 0}, "workers is 0"),
        ({"every": 0}, "every is 0"),
        ({"reconnect": -1}, "reconnect is -1; it must be a whole number >= 0"),
        ({"max_detections": 0}, "max_detections"),
    ):
        with pytest.raises(ConfigError, match=words):
            pipeline.stream(path, **options)


def test_names_of_sources(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("0", "camera:12", "rtsp://host/a", "http://host/a.mp4"):
        assert is_live(source)
    for source in ("camera:x", "a.mp4", "http://host/a.JPG"):
        assert not is_live(source)
    write_video(Path("a.mp4"), frames=2).rename("7")  # a file of this name is no camera
    assert not is_live("7")
    assert open_source("7", reconnect=0, max_pixels=10**6).count == 2
    assert display_name("rtsp://me:secret@host:554/a?key=1") == "rtsp://host:554/a"
