"""Videos of `condinst predict`: an overlay video, and a line of JSON per frame."""

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

from condinst_infer.cli.options import PredictOptions
from condinst_infer.cli.predict_images import ImagePredictor, result_paths
from condinst_infer.cli.sources import VideoSource
from condinst_infer.errors import InputError
from condinst_infer.system.outputs import atomic_files
from condinst_infer.system.paths import check_utf8_name
from condinst_infer.system.progress import progress_bar
from condinst_infer.system.signals import stop_signals
from condinst_infer.video.sources import FALLBACK_FPS, Frame, Source, open_source
from condinst_infer.video.stream import FrameStream
from condinst_infer.video.writer import recording


class VideoJob(NamedTuple):
    """A video and where its results go."""

    source: str
    overlay: Path | None
    lines: Path | None


class FrameOutcome(NamedTuple):
    """The results of a frame."""

    line: str  # its JSON
    found: int  # instances or segments
    overlay: np.ndarray | None  # BGR uint8 [H, W, 3]


def jobs_from_sources(videos: list[VideoSource], options: PredictOptions) -> list[VideoJob]:
    """Every video with the files its results go to."""
    overlays: list[Path | None] = [None] * len(videos)
    lines = overlays
    if options.overlays and videos:
        check_utf8_name(options.output, "OpenCV's video writer")
        overlays = result_paths(videos, options.output, "overlay", lambda _: ".mp4")
    if options.result_format == "coco":
        lines = result_paths(videos, options.output, "result", lambda _: ".jsonl")
    parts = zip(videos, overlays, lines, strict=True)
    return [VideoJob(video.source, overlay, line) for video, overlay, line in parts]


def predict_videos(
    predictor: ImagePredictor, jobs: list[VideoJob], options: PredictOptions, workers: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]], int | None]:
    """A report on each video, on those that could not be opened, and the signal that ended it."""
    # OpenCV and FFmpeg print what one of our sentences says
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # OpenCV 4.13 moved the function from cv2 to cv2.utils.logging; level 0 is silence
    owner: Any = getattr(cv2.utils, "logging", cv2)
    owner.setLogLevel(0)
    reports, failed, came = [], [], []
    for job in jobs:
        try:
            source = open_source(
                job.source, reconnect=options.reconnect, max_pixels=options.max_pixels
            )
        except InputError as error:
            failed.append({"file": job.source, "error": str(error)})
            continue
        report, came = _predict_video(predictor, source, job, options, workers)
        if report["frames"] or report["interrupted"]:
            reports.append(report)
        else:
            reason = report["error"] or f"{source.name} has no frame that can be read."
            failed.append({"file": job.source, "error": reason})
        if came:
            break
    return reports, failed, came[0] if came else None


def _predict_video(
    predictor: ImagePredictor,
    source: Source,
    job: VideoJob,
    options: PredictOptions,
    workers: int,
) -> tuple[dict[str, Any], list[int]]:
    """Draw and write one video; a report on it, and the signals that came."""
    start = time.perf_counter()
    batch = max(options.batch, predictor.pipeline.metadata.batch or 1)
    frames = count = 0
    write, failure = None, []
    with (
        FrameStream(
            source,
            partial(_predict_frames, predictor, draw=job.overlay is not None),
            workers=workers,
            every=options.every,
            batch=batch,
        ) as stream,
        stop_signals(stream.stop) as interrupts,
        progress_bar(source.count, "frame") as bar,
        ExitStack() as files,
    ):
        for frame, outcome in _until_lost(stream, failure):
            if write is None:
                write = files.enter_context(_open_outputs(job, source, options.every))
            write(frame, outcome)
            frames, count = frames + 1, count + outcome.found
            bar.update(frame.index + 1 - bar.n)
    report = {
        "file": source.name,
        "frames": frames,
        predictor.noun: count,
        "broken": source.broken,
        "skipped": source.skipped,
        "reconnected": source.reconnected,
        "error": failure[0] if failure else None,
        "interrupted": bool(interrupts),
        "overlay": None if job.overlay is None else str(job.overlay),
        "json_lines": None if job.lines is None else str(job.lines),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return report, interrupts


def _predict_frames(
    predictor: ImagePredictor, frames: list[Frame], *, draw: bool
) -> list[FrameOutcome]:
    """The outcome of a few frames, computed by one worker."""
    outcomes = []
    results = predictor.predict([frame.image for frame in frames])
    for frame, result in zip(frames, results, strict=True):
        seconds = None if frame.seconds is None else round(frame.seconds, 6)
        # COCO results whose image id is the frame's number
        line = {"index": frame.index, "seconds": seconds} | result.to_coco_record(frame.index)
        count = len(getattr(result, "segments", result))
        outcomes.append(FrameOutcome(json.dumps(line), count, result.plot() if draw else None))
    return outcomes


@contextmanager
def _open_outputs(
    job: VideoJob, source: Source, every: int
) -> Iterator[Callable[[Frame, FrameOutcome], None]]:
    """Yield a function that writes a frame; the files take their names at the end."""
    fps = (source.fps or FALLBACK_FPS) / every
    paths = [path for path in (job.lines, job.overlay) if path is not None]
    with atomic_files(*paths) as parts, ExitStack() as stack:
        part_of = dict(zip(paths, parts, strict=True))
        lines = recorder = None
        if job.lines is not None:
            lines = stack.enter_context(part_of[job.lines].open("w", encoding="utf-8"))
        if job.overlay is not None:
            recorder = stack.enter_context(recording(part_of[job.overlay], job.overlay, fps))

        def write(frame: Frame, outcome: FrameOutcome) -> None:
            if lines is not None:
                print(outcome.line, file=lines)
            if recorder is not None and outcome.overlay is not None:
                # what a live source left out must not make the video run faster
                late = round(frame.seconds * fps) if source.live and frame.seconds else 0
                recorder.write(outcome.overlay, late if source.live else frame.index // every)

        yield write


def _until_lost(
    stream: FrameStream[FrameOutcome], failure: list[str]
) -> Generator[tuple[Frame, FrameOutcome], None, None]:
    """The pairs of `stream`; where it fails on its source, the reason is added to `failure`."""
    try:
        yield from stream
    except InputError as error:
        failure.append(str(error))


def print_warnings(reports: list[dict[str, Any]], unopened: list[dict[str, str]]) -> None:
    """Print on stderr what is wrong with the videos."""
    for failure in unopened:
        print(f"condinst: {failure['error']}", file=sys.stderr)
    for report in reports:
        if report["error"]:
            print(f"condinst: {report['error']}", file=sys.stderr)
        if report["broken"]:
            print(
                f"condinst: {report['file']}: {report['broken']} frames are broken or missing.",
                file=sys.stderr,
            )


def print_summary(reports: list[dict[str, Any]], noun: str) -> None:
    """Print a line about each video."""
    for report in reports:
        facts = [f"{report['frames']} frames", f"{report[noun]} {noun}"]
        facts += [f"{report['skipped']} skipped"] if report["skipped"] else []
        facts += ["interrupted"] if report["interrupted"] else []
        files = [report[key] for key in ("overlay", "json_lines") if report[key]]
        where = f" -> {', '.join(files)}" if files else ""
        print(f"{report['file']}: {', '.join(facts)}, {report['seconds']:.1f} s{where}")
