"""What `condinst predict` does to a video: one with overlays, and a line of JSON per frame."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from condinst_infer.cli.predict_images import Work, found_in, result_paths
from condinst_infer.cli.sources import VideoSource
from condinst_infer.errors import InputError
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.system.files import replacing
from condinst_infer.system.signals import stop_signals
from condinst_infer.video.sources import FALLBACK_FPS, Frame, Source, open_source
from condinst_infer.video.stream import FrameStream
from condinst_infer.video.writer import recording


class VideoJob(NamedTuple):
    """A video and where its results go."""

    source: str
    overlay: Path | None
    lines: Path | None


class Done(NamedTuple):
    """What became of a frame."""

    line: str  # its JSON
    found: int
    overlay: np.ndarray | None  # BGR uint8 [H, W, 3]


def video_jobs(videos: list[VideoSource], args: argparse.Namespace) -> list[VideoJob]:
    """Every video with the files its results go to."""
    overlays: list[Path | None] = [None] * len(videos)
    lines = overlays
    if args.overlays:
        overlays = result_paths(videos, args.output, "overlay", lambda _: ".mp4")
    if args.coco_json:
        lines = result_paths(videos, args.output, "result", lambda _: ".jsonl")
    parts = zip(videos, overlays, lines, strict=True)
    return [VideoJob(video.source, overlay, line) for video, overlay, line in parts]


def predict_videos(
    work: Work, jobs: list[VideoJob], args: argparse.Namespace, workers: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """A report of each video, and of those that could not be opened; an interrupt ends it."""
    # OpenCV and FFmpeg have their own words for what one of our sentences says
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # OpenCV 4.13 moved the function from cv2 to cv2.utils.logging; level 0 is silence
    owner: Any = getattr(cv2.utils, "logging", cv2)
    owner.setLogLevel(0)
    reports, failed = [], []
    for job in jobs:
        try:
            source = open_source(job.source, reconnect=args.reconnect, max_pixels=args.max_pixels)
        except InputError as error:
            failed.append({"file": job.source, "error": str(error)})
            continue
        report = _predicted(work, source, job, args, workers)
        if report["frames"] or report["interrupted"]:
            reports.append(report)
        else:
            reason = report["error"] or f"{source.name} has no frame that can be read."
            failed.append({"file": job.source, "error": reason})
        if report["interrupted"]:
            break
    return reports, failed


def _predicted(
    work: Work, source: Source, job: VideoJob, args: argparse.Namespace, workers: int
) -> dict[str, Any]:
    """Draw and write one video, and say what was found."""
    start = time.perf_counter()
    batch = max(args.batch, work.pipeline.metadata.batch or 1)
    frames = count = 0
    write, failure = None, []
    with (
        FrameStream(
            source,
            partial(_done, work, draw=job.overlay is not None),
            workers=workers,
            every=args.every,
            batch=batch,
        ) as stream,
        stop_signals(stream.stop) as interrupts,
        tqdm(total=source.count, unit="frame", disable=None, delay=2) as bar,
        ExitStack() as files,
    ):
        for frame, done in _until_lost(stream, failure):
            if write is None:
                write = files.enter_context(_writing(job, source, args.every))
            write(frame, done)
            frames, count = frames + 1, count + done.found
            bar.update(frame.index + 1 - bar.n)
    return {
        "file": source.name,
        "frames": frames,
        work.noun: count,
        "broken": source.broken,
        "skipped": source.skipped,
        "reconnected": source.reconnected,
        "error": failure[0] if failure else None,
        "interrupted": bool(interrupts),
        "overlay": None if job.overlay is None else str(job.overlay),
        "json_lines": None if job.lines is None else str(job.lines),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _done(work: Work, frames: list[Frame], *, draw: bool) -> list[Done]:
    """What a worker does to a few frames."""
    return [
        Done(_line(frame, result), _count(result), result.plot() if draw else None)
        for frame, result in zip(frames, work.find([f.image for f in frames]), strict=True)
    ]


def _count(result: Instances | PanopticSegmentation) -> int:
    return len(result.segments if isinstance(result, PanopticSegmentation) else result)


def _line(frame: Frame, result: Instances | PanopticSegmentation) -> str:
    """One line of JSON; its detections are COCO results whose image is the frame's number."""
    seconds = None if frame.seconds is None else round(frame.seconds, 6)
    line = {"index": frame.index, "seconds": seconds}
    return json.dumps(line | found_in(result, frame.index))


@contextmanager
def _writing(job: VideoJob, source: Source, every: int) -> Iterator[Callable[[Frame, Done], None]]:
    """A function that writes a frame; the files take their names when this is left."""
    fps = (source.fps or FALLBACK_FPS) / every
    with ExitStack() as stack:
        lines = recorder = None
        if job.lines is not None:
            part = stack.enter_context(replacing(job.lines))
            lines = stack.enter_context(part.open("w", encoding="utf-8"))
        if job.overlay is not None:
            recorder = stack.enter_context(recording(job.overlay, fps))

        def write(frame: Frame, done: Done) -> None:
            if lines is not None:
                print(done.line, file=lines)
            if recorder is not None and done.overlay is not None:
                # what a live source left out must not make the video run faster
                late = round(frame.seconds * fps) if source.live and frame.seconds else 0
                recorder.write(done.overlay, late if source.live else frame.index // every)

        yield write


def _until_lost(
    stream: FrameStream[Done], failure: list[str]
) -> Generator[tuple[Frame, Done], None, None]:
    """What `stream` gives; where it fails on its source, the reason is added to `failure`."""
    try:
        yield from stream
    except InputError as error:
        failure.append(str(error))


def print_reports(reports: list[dict[str, Any]], noun: str, args: argparse.Namespace) -> None:
    """What is wrong with the videos on stderr, and unless there is --json a line about each."""
    for report in reports:
        if report["error"]:
            print(f"condinst: {report['error']}", file=sys.stderr)
        if report["broken"]:
            print(
                f"condinst: {report['file']}: {report['broken']} frames are broken or missing.",
                file=sys.stderr,
            )
        if not args.json:
            extras = [f"{report[key]} {key}" for key in ("skipped",) if report[key]]
            extras += ["interrupted"] if report["interrupted"] else []
            facts = [f"{report['frames']} frames", f"{report[noun]} {noun}", *extras]
            files = [report[key] for key in ("overlay", "json_lines") if report[key]]
            where = f" -> {', '.join(files)}" if files else ""
            print(f"{report['file']}: {', '.join(facts)}, {report['seconds']:.1f} s{where}")
