"""`condinst predict`: instances or panoptic segments of images and videos."""

import json
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from condinst_infer.cli.options import (
    MAX_WORKERS,
    PredictOptions,
    Verb,
    add_json,
    add_model,
    add_output,
    add_run,
    positive,
)
from condinst_infer.cli.predict_images import (
    ImagesDone,
    jobs_from_files,
    predict_images,
    predictor_for,
)
from condinst_infer.cli.sources import Media, media
from condinst_infer.config.model import MAX_PIXELS, RECONNECT
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.pipeline import load
from condinst_infer.processing.options import classes_from_text
from condinst_infer.system.row_file import RowFile


@dataclass
class PredictReport:
    """Reports on all sources; plain data, as `--json` prints it."""

    images: list[dict[str, Any]] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)  # {"file": ..., "error": ...}
    seconds: float = 0.0
    result_file: str | None = None  # of all images: COCO, or data.yaml of YOLO
    signal: int | None = None  # that interrupted the work: 2 is SIGINT, 15 is SIGTERM

    def exit_status(self) -> int:
        """0 if all was done, 1 if something could not be read; 130, 143 after SIGINT, SIGTERM."""
        if self.signal is not None:
            return 128 + self.signal
        return int(bool(self.failed) or any(v["broken"] or v["error"] for v in self.videos))


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `PredictOptions`."""
    add_model(parser)
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="images, videos, folders (searched), patterns, .txt files with a path per line, "
        "camera:N or URLs of streams",
    )
    add_output(parser, "DIR", "folder for the results; created if missing")
    _add_filters(parser)
    _add_panoptic(parser)
    parser.add_argument(
        "--overlays",
        action=BooleanOptionalAction,
        default=True,
        help="write each image with its instances drawn (default: yes)",
    )
    parser.add_argument(
        "--format",
        choices=("coco", "coco-dataset", "yolo", "labelme", "none"),
        help="format of the results. coco: detections.json, for a video a .jsonl, with --panoptic "
        "panoptic.json and PNGs; coco-dataset: annotations.json; yolo: labels/ and data.yaml; "
        "labelme: a .json per image (default: coco)",
    )
    _add_video(parser)
    add_run(parser)
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help="reject larger images, height times width (default: %(default)s)",
    )
    _add_ray(parser)
    add_json(parser)


def _add_filters(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help="drop instances with a lower score, 0 to 1 (default: keep all)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="K",
        help="keep at most K instances per image, best first (default: keep all)",
    )
    parser.add_argument(
        "--classes",
        type=classes_from_text,
        metavar="A,B",
        help="keep only these classes: names or numbers, separated by commas (default: keep all)",
    )


def _add_panoptic(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--panoptic",
        action="store_true",
        help="segment every pixel into things and stuff; for models with a semantic branch",
    )
    parser.add_argument(
        "--instance-threshold",
        type=float,
        metavar="S",
        help="with --panoptic: drop instances with a lower score (default: the model's)",
    )
    parser.add_argument(
        "--overlap-threshold",
        type=float,
        metavar="X",
        help="with --panoptic: drop an instance if better ones cover more than this part of its "
        "area, 0 to 1 (default: the model's)",
    )
    parser.add_argument(
        "--stuff-area-limit",
        type=int,
        metavar="PIXELS",
        help="with --panoptic: turn smaller areas of stuff into void (default: the model's)",
    )


def _add_video(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="process every N-th frame of a video; from a camera or live stream the newest frame "
        "is processed as soon as the last one is done (default: %(default)s)",
    )
    parser.add_argument(
        "--reconnect",
        type=_count,
        default=RECONNECT,
        metavar="N",
        help="number of attempts to reopen a camera or live stream that broke off, with growing "
        "pauses (default: %(default)s)",
    )


def _add_ray(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Ray", "many images on the cores or GPUs of a cluster; a rerun completes what is missing"
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="write shards of results instead of overlays and COCO files; local starts Ray on this "
        "machine, auto and HOST:PORT join its cluster. Each actor takes --workers times "
        "--threads cores (default: up to 8 times 1), with --device cuda also a GPU. All nodes need "
        "this package, and model, images and DIR under the same paths",
    )
    group.add_argument(
        "--shards",
        choices=("jsonl", "parquet"),
        default="jsonl",
        help="format of the shards: the JSON lines of videos, or the same records as Parquet "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--shard-size",
        type=positive,
        default=100,
        metavar="N",
        help="images in a shard; an unfinished shard is done again as a whole "
        "(default: %(default)s)",
    )


def run(options: PredictOptions) -> int:
    """Write results of all sources and print a summary.

    Raises:
        InputError: nothing could be read.
    """
    if options.ray is not None:
        from condinst_infer.cli.predict_ray import predict_ray

        return predict_ray(options)
    start = time.perf_counter()
    report = predict_media(media(options.source, options.output), options)
    report.seconds = round(time.perf_counter() - start, 3)
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        _print_summary(report, options)
    return report.exit_status()


def predict_media(sources: Media, options: PredictOptions) -> PredictReport:
    """Write results of images, then of videos; what can't be read is printed on stderr.

    Raises:
        InputError: nothing could be read.
    """
    images, videos, problems = sources
    if videos and options.result_format not in ("coco", "none"):
        raise ConfigError(
            f"videos take --format coco or none, not {options.format}; {videos[0].source} is one."
        )
    jobs = jobs_from_files(images, options)
    video_jobs: list[Any] = []
    if videos:
        from condinst_infer.cli.predict_video import jobs_from_sources

        video_jobs = jobs_from_sources(videos, options)
    report, unopened = PredictReport(), []
    for problem in problems:
        report.failed.append({"file": problem.path, "error": problem.error})
        print(f"condinst: {problem.error}", file=sys.stderr)
    count = len(images) + len(videos) + len(problems)
    workers = options.workers_for(MAX_WORKERS if videos else len(jobs))
    with (
        load(
            options.model,
            **options.for_load(),
            workers=workers,
            max_pixels=options.max_pixels,
            max_batch=options.batch,
        ) as pipeline,
        closing(RowFile(options.output)) as rows,
    ):
        predictor = predictor_for(pipeline, options)
        done = ImagesDone(rows, report.images, failed=report.failed)
        try:
            predict_images(
                predictor,
                jobs,
                done,
                workers=workers,
                batch=options.batch,
                tell_failures=count > 1,
                tell_results=not options.json,
            )
        finally:  # also after an error, such as a GPU that is lost
            if done.reports:
                path = predictor.write_all(options.output, done.reports, done.rows)
                report.result_file = None if path is None else str(path)
        report.signal = done.signal
        if videos and report.signal is None:
            from condinst_infer.cli.predict_video import predict_videos

            report.videos, unopened, report.signal = predict_videos(
                predictor, video_jobs, options, workers
            )
            report.failed += unopened
        if report.signal is not None:
            facts = [f"{len(report.images)} of {len(images)} images"] if images else []
            facts += [f"{len(report.videos)} of {len(videos)} videos"] if videos else []
            print(f"condinst: interrupted; {', '.join(facts)} are done.", file=sys.stderr)
            return report
    if report.failed and len(report.failed) == count:
        kind = "source" if images and videos else "video" if videos else "image"
        raise InputError(report.failed[0]["error"] if count == 1 else f"no {kind} could be read.")
    if videos:
        from condinst_infer.cli.predict_video import print_warnings

        print_warnings(report.videos, unopened)
    return report


def _print_summary(report: PredictReport, options: PredictOptions) -> None:
    noun = "segments" if options.panoptic else "instances"
    if report.videos:
        from condinst_infer.cli.predict_video import print_summary

        print_summary(report.videos, noun)
    if report.images or not report.videos:
        count = sum(image[noun] for image in report.images)
        skipped = f", {len(report.failed)} skipped" if report.failed else ""
        where = report.result_file or options.output
        print(
            f"{len(report.images)} images, {count} {noun}{skipped}, {report.seconds:.1f} s "
            f"-> {where}"
        )
        if rings := sum(image.get("outer_rings", 0) for image in report.images):
            print(
                f"{rings} instances have holes or several parts; {options.format} has their outer "
                "rings only."
            )


def _count(text: str) -> int:
    """Parse a whole number >= 0."""
    return 0 if text == "0" else positive(text)


VERB = Verb(
    "condinst predict model.onnx street.jpg holiday/ 'scans/*.png' -o out --score-threshold 0.4\n"
    "  condinst predict model.onnx traffic.mp4 camera:0 rtsp://host/stream -o out\n\n"
    "exit status: 0 all done, 1 some could not be read, 2 nothing was done; 130 interrupted by\n"
    "Ctrl-C, 143 by SIGTERM: the current video is closed properly, and what is done is kept",
    add_options,
    PredictOptions,
    run,
    inputs=("model", "source"),
    outputs={"output": "folder"},
)
