"""`condinst predict` on videos: what it writes and says, and how an interrupt ends it."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from condinst_infer.cli.sources import media
from condinst_infer.errors import InputError
from condinst_infer.system.signals import SAME_EVENT_S
from condinst_infer.video.writer import Recorder, video_recorder
from tests.support.command_line import Run, assert_refused
from tests.support.video_files import (
    FPS,
    SIDE,
    break_frames,
    left_edge,
    picture,
    read_video,
    streaming,
    truncate,
    write_video,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode
Patch = pytest.MonkeyPatch


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("workers", [1, 3])
def test_a_video_gives_a_video_with_overlays_and_a_line_per_frame(
    workers: int, condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    path, out = write_video(tmp_path / "square.avi", size=(96, 160)), tmp_path / "out"
    status, text, err = condinst("predict", bright_model, path, "-o", out, "--workers", workers)
    assert (status, err) == (0, "") and "30 frames, 30 instances" in text
    assert names_in(out) == ["square.jsonl", "square.mp4"]
    images, fps = read_video(out / "square.mp4")
    assert fps == FPS and len(images) == 30
    for number, image in enumerate(images):
        plain = picture(number)
        inside = plain[..., 0] > 0
        assert image.shape == (96, 160, 3)
        # the square is tinted, so it is no longer grey; what is around it, but for the label, is
        colour = np.ptp(image.astype(int), axis=2)
        assert np.median(colour[inside]) > 40 and np.median(colour[~inside]) < 10
    for number, line in enumerate(lines_of(out / "square.jsonl")):
        assert line["index"] == number and line["seconds"] == pytest.approx(number / FPS, abs=1e-3)
        (row,) = line["detections"]
        assert row["image_id"] == number and row["category_id"] == 1
        columns = np.flatnonzero(coco_mask.decode(row["segmentation"]).any(axis=0))
        assert abs(columns[0] - left_edge(number)) <= 4
        assert abs(columns[-1] - left_edge(number) - SIDE) <= 4


def test_switches_and_every_nth_frame(condinst: Run, bright_model: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.mp4", frames=10)
    for switches, names in (
        (("--no-overlays",), ["square.jsonl"]),
        (
            (
                "--format",
                "none",
            ),
            ["square.mp4"],
        ),
        (("--format", "none", "--no-overlays"), []),
    ):
        out = tmp_path / "-".join(switches)
        command = ("predict", bright_model, path, "-o", out, "--every", 4, *switches, "--json")
        status, text, _ = condinst(*command)
        (report,) = json.loads(text)["videos"]
        assert status == 0 and names_in(out) == names and report["frames"] == 3
        assert report["instances"] == 3
        for key, suffix in (("overlay", ".mp4"), ("json_lines", ".jsonl")):
            expected = str(out / f"square{suffix}")
            assert report[key] == (expected if f"square{suffix}" in names else None)
        if "square.jsonl" in names:
            assert [line["index"] for line in lines_of(out / "square.jsonl")] == [0, 4, 8]
        if "square.mp4" in names:
            images, fps = read_video(out / "square.mp4")
            assert len(images) == 3 and fps == FPS / 4  # it lasts as long as the source


def test_images_and_videos_in_one_call(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    for name in ("walk.mp4", "b/walk.mp4", "walk.avi"):
        write_video(photos / name, frames=3)
    out = photos / "out"
    for _ in range(2):  # what the first run wrote is no source of the second
        status, text, err = condinst("predict", bright_model, photos, "-o", out, "--json")
        data = json.loads(text)
        assert (status, err) == (0, "") and len(data["images"]) == len(data["videos"]) == 3
    names = [name for name in names_in(out) if "walk" in name]
    assert names == [
        *("b/walk.jsonl", "b/walk.mp4", "walk-2.jsonl", "walk-2.mp4"),
        *("walk.jsonl", "walk.mp4"),
    ]
    rows = json.loads((out / "detections.json").read_text())
    assert {row["file_name"] for row in rows} == {"12.jpg", "a.png"}
    assert_refused(condinst("predict", bright_model, photos, "-o", photos), "would overwrite")


def test_broken_frames_are_left_out_and_said(
    condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    path, out = write_video(tmp_path / "square.avi"), tmp_path / "out"
    break_frames(path, range(10, 13))
    status, text, err = condinst("predict", bright_model, path, "-o", out, "--json")
    assert status == 1 and json.loads(text)["videos"][0]["broken"] == 3
    assert err == f"condinst: {path}: 3 frames are broken or missing.\n"
    indices = [line["index"] for line in lines_of(out / "square.jsonl")]
    assert indices == [*range(10), *range(13, 30)]
    # the video keeps its time: the frame before the gap stays
    images, _ = read_video(out / "square.mp4")
    assert len(images) == 30
    shown = [int(np.flatnonzero(image[50].max(axis=1) > 128)[0]) for image in images]
    held = [left_edge(9 if 10 <= number < 13 else number) for number in range(30)]
    assert max(abs(a - b) for a, b in zip(shown, held, strict=True)) <= 3


def test_a_truncated_file_gives_what_it_has(
    condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    path, out = write_video(tmp_path / "square.avi"), tmp_path / "out"
    truncate(path, 0.6)
    words = [sys.executable, "-m", "condinst_infer", "predict", bright_model, path, "-o", out]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    frames = len(lines_of(out / "square.jsonl"))
    assert done.returncode == 1 and 5 < frames < 25 and f"{frames} frames" in done.stdout
    assert len(read_video(out / "square.mp4")[0]) == frames
    # OpenCV and FFmpeg say nothing of their own
    assert done.stderr == f"condinst: {path}: {30 - frames} frames are broken or missing.\n"


def test_what_cannot_be_opened_writes_nothing_and_stops_no_other(
    condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    good, out = write_video(tmp_path / "good.mp4", frames=3), tmp_path / "out"
    bad = tmp_path / "bad.mp4"
    bad.write_text("I am a text")
    command = ("predict", bright_model, bad)
    assert_refused(condinst(*command, "-o", out), "bad.mp4 can't be opened")
    missing = tmp_path / "no.mp4"
    assert_refused(condinst(*command, missing, "-o", out), "no video could be read")
    large = (*("predict", bright_model, good, "-o", out), "--max-pixels", 100)
    assert_refused(condinst(*large), "--max-pixels 15360")
    low = ("predict", bright_model, good, "-o", out, "--score-threshold", "0.01")
    assert_refused(condinst(*low), "condinst export")
    assert not out.exists()
    status, text, err = condinst(*command, good, missing, "-o", out, "--json")
    data = json.loads(text)
    assert status == 1 and [Path(v["file"]).name for v in data["videos"]] == ["good.mp4"]
    assert [Path(f["file"]).name for f in data["failed"]] == ["bad.mp4", "no.mp4"]
    assert err.count("\n") == 2 and names_in(out) == ["good.jsonl", "good.mp4"]


def test_a_folder_that_cannot_be_written_ends_it(
    condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "square.mp4", frames=3)
    (tmp_path / "out").write_text("a file")
    command = ("predict", bright_model, path, "-o", tmp_path / "out")
    assert_refused(condinst(*command), "out is a file; give the name of a folder")
    assert not [t for t in threading.enumerate() if t.name.startswith("condinst")]


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)]
)
def test_an_interrupt_finishes_the_files(
    workers: int,
    number: signal.Signals,
    condinst: Run,
    bright_model: Path,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    counter, write = itertools.count(), Recorder.write

    def interrupted(self: Recorder, image: np.ndarray, place: int) -> None:
        if next(counter) == 5:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, number)
        write(self, image, place)

    monkeypatch.setattr(Recorder, "write", interrupted)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    paths = [write_video(tmp_path / f"{name}.mp4") for name in ("first", "second")]
    out = tmp_path / "out"
    command = ("predict", bright_model, *paths, "-o", out, "--workers", workers)
    status, text, err = condinst(*command)
    said = "condinst: interrupted; 1 of 2 videos are done.\n"
    assert (status, err) == (128 + number, said)
    assert text.count("\n") == 1 and "interrupted" in text
    assert names_in(out) == ["first.jsonl", "first.mp4"]
    lines = lines_of(out / "first.jsonl")
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert 6 <= len(lines) <= 6 + 2 * workers + 1
    assert len(read_video(out / "first.mp4")[0]) == len(lines)
    assert not [t for t in threading.enumerate() if t.name.startswith("condinst")]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_leaves_nothing(
    condinst: Run, bright_model: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    def interrupted(self: Recorder, image: np.ndarray, place: int) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(2 * SAME_EVENT_S)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "write", interrupted)
    path = write_video(tmp_path / "square.mp4")
    out = tmp_path / "out"
    status, text, err = condinst("predict", bright_model, path, "-o", out)
    assert (status, text) == (130, "") and "square.mp4 was not written" in err
    assert names_in(out) == []


def test_a_lost_stream_keeps_what_came(
    condinst: Run, bright_model: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr("condinst_infer.video.sources.FIRST_PAUSE", 0.02)
    out = tmp_path / "out"
    with streaming(15, 25) as (url, server):
        timer = threading.Timer(2.0, server.kill)  # in the middle of a later connection
        timer.start()
        start = time.monotonic()
        status, text, err = condinst(
            *("predict", bright_model, url, "-o", out, "--reconnect", 2, "--json")
        )
        seconds = time.monotonic() - start
        timer.join()
    (report,) = json.loads(text)["videos"]
    sentences = [line for line in err.splitlines() if line.startswith("condinst: ")]
    assert status == 1 and len(sentences) == 1 and "did not come back" in sentences[0]
    assert report["reconnected"] >= 1 and report["frames"] > 15
    name = f"127-0-0-1-{url.split(':')[2].split('/')[0]}-square-mjpg"
    overlay = out / f"{name}.mp4"
    assert names_in(out) == [f"{name}.jsonl", overlay.name]
    lines = lines_of(out / f"{name}.jsonl")
    assert len(lines) == report["frames"]
    images, fps = read_video(overlay)
    # it runs as fast as what it shows: pauses and what was left out take their time
    assert fps == 25 and abs(len(images) / fps - lines[-1]["seconds"]) < 0.1
    assert lines[-1]["seconds"] < seconds


def test_a_recorder_gives_every_picture_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.mp4"
    pictures = {2: 60, 3: 110, 7: 160}
    with video_recorder(path, 10.0) as recorder:
        for place, grey in pictures.items():
            recorder.write(np.full((33, 47, 3), grey, np.uint8), place)
        recorder.write(np.full((33, 47, 3), 250, np.uint8), 7)  # the place is taken
        recorder.write(np.full((66, 94, 3), 210, np.uint8), 8)  # of another size
        assert not path.exists()
    images, fps = read_video(path)
    assert fps == 10 and images[0].shape[:2] == (32, 46)  # the codec wants even sides
    expected = [60, 60, 60, 110, 110, 110, 110, 160, 210]
    assert np.abs(np.array([image.mean() for image in images]) - expected).max() < 4
    assert names_in(tmp_path) == ["a/b.mp4"]


def test_a_video_that_was_not_written_whole_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(InputError, match=r"a\.mp4 can't be written: 0 of 5 frames"):  # noqa: SIM117
        with video_recorder(path, 10.0) as recorder:
            for place in range(5):
                recorder.write(picture(place), place)
            recorder.release()
            (part,) = tmp_path.iterdir()
            truncate(part, 0.5)  # as on a full disk
    assert names_in(tmp_path) == []
    with (
        pytest.raises(InputError, match="OpenCV can't encode 1 x 1"),
        video_recorder(path, 9) as one,
    ):
        one.write(np.zeros((1, 1, 3), np.uint8), 0)


def test_sources_get_names_for_their_results(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=2)
    sources = [str(tmp_path / "a.mp4"), "camera:0", "rtsp://me:secret@cam.host:554/live.sdp?x=1"]
    images, videos, _ = media([*sources, "camera:0", "gone.MOV", "http://host/a.png"], tmp_path)
    assert [image.path.name for image in images] == ["a.png"]
    assert [video.name.stem for video in videos] == [
        *("a", "gone", "camera-0"),
        "cam-host-554-live-sdp",
    ]
