"""`condinst predict` and `condinst demo`."""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import closing
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from condinst_infer.cli import options
from condinst_infer.cli.predict_images import (
    Job,
    PanopticWork,
    Work,
    jobs_of,
    write_coco,
    write_image,
)
from condinst_infer.cli.predict_ray import predict_ray
from condinst_infer.cli.predict_video import predict_videos, print_reports, video_jobs
from condinst_infer.cli.sources import media
from condinst_infer.errors import InputError
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.results.instances import Instances
from condinst_infer.system.ordered_map import groups, in_order


def predict(args: argparse.Namespace) -> int:
    """0 if all was done, 1 if some could not be read, 130 if a video was interrupted.

    Raises:
        InputError: nothing could be read.
    """
    if args.ray is not None:
        return predict_ray(args)
    images, videos = media(args.source, args.output)
    jobs, later = jobs_of(images, args), video_jobs(videos, args)
    start = time.perf_counter()
    workers = options.workers(args, options.MAX_WORKERS if videos else len(jobs))
    pipeline = load(
        args.model,
        **options.runtime(args),
        workers=workers,
        max_pixels=args.max_pixels,
        max_batch=args.batch,
    )
    with pipeline:
        work = (PanopticWork if args.panoptic else Work)(pipeline, args)
        results, rows, failed = _predict_images(work, jobs, args, workers)
        wanted = args.coco_json and (results or not (failed or videos))
        coco = args.output / work.coco_name if wanted else None
        if coco is not None:
            write_coco(coco, work.coco(results, rows))
        reports, unopened = predict_videos(work, later, args, workers)
    failed += unopened
    if failed and len(failed) == len(images) + len(videos):
        alone = len(failed) == 1
        what = "video" if not images else "source" if videos else "image"
        raise InputError(failed[0]["error"] if alone else f"no {what} could be read.")
    for failure in unopened:
        print(f"condinst: {failure['error']}", file=sys.stderr)
    print_reports(reports, work.noun, args)
    report = {"images": results, "videos": reports, "failed": failed}
    _report(report, coco, time.perf_counter() - start, args, work.noun)
    if any(report["interrupted"] for report in reports):
        return 130
    return 1 if failed or any(r["broken"] or r["error"] for r in reports) else 0


def _predict_images(
    work: Work, jobs: list[Job], args: argparse.Namespace, workers: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    """A report of each image, all rows of the COCO file, and what could not be read."""
    results, rows, failed = [], [], []
    parts = groups(jobs, max(args.batch, work.pipeline.metadata.batch or 1))
    # none on a pipe (None), and on a terminal only when it takes longer than two seconds
    with (
        tqdm(total=len(jobs), unit="image", disable=None, delay=2) as bar,
        closing(in_order(work, parts, workers=workers)) as done,
    ):
        for result, found in chain.from_iterable(done):
            bar.update()
            if "error" not in result:
                results.append(result)
                rows += found
                continue
            failed.append(result)
            if len(jobs) > 1:  # that of a single file is raised later
                tqdm.write(f"condinst: {result['error']}", file=sys.stderr)
    return results, rows, failed


def _report(
    report: dict[str, list[Any]],
    coco: Path | None,
    seconds: float,
    args: argparse.Namespace,
    noun: str,
) -> None:
    if args.json:
        data = report | {"seconds": round(seconds, 3)}
        print(json.dumps(data | {"coco_json": None if coco is None else str(coco)}))
        return
    results, failed = report["images"], report["failed"]
    if results or not report["videos"]:
        count = sum(result[noun] for result in results)
        skipped = f", {len(failed)} skipped" if failed else ""
        print(f"{len(results)} images, {count} {noun}{skipped}, {seconds:.1f} s -> {args.output}")


def demo(args: argparse.Namespace) -> int:
    """Run the bundled model on the bundled photograph."""
    data = resources.files("condinst_infer") / "data"
    with (
        resources.as_file(data / "nuclei.onnx") as model,
        resources.as_file(data / "nuclei.jpg") as photo,
        load(model, threads=args.threads) as pipeline,
    ):
        pipeline(photo)  # the first call also allocates
        start = time.perf_counter()
        result = pipeline(photo)
        milliseconds = 1000 * (time.perf_counter() - start)
        write_image(args.output, result.plot())
        _report_demo(pipeline, result, milliseconds, args.output)
    return 0


def _report_demo(pipeline: Pipeline, result: Instances, milliseconds: float, path: Path) -> None:
    height, width = result.image_size
    counts = Counter(result.names).most_common()
    print(f"model:     {pipeline.config.name}, {pipeline.metadata.precision}")
    print(f"image:     {width} x {height}, {milliseconds:.0f} ms from file to masks")
    print(f"instances: {len(result)}  " + ", ".join(f"{n} {name}" for name, n in counts[:6]))
    print(f"overlay:   {path}")
