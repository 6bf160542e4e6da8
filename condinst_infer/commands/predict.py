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

from condinst_infer.commands import options
from condinst_infer.commands.files import image_files
from condinst_infer.commands.predict_work import (
    PanopticWork,
    Work,
    jobs_of,
    write_coco,
    write_image,
)
from condinst_infer.errors import InputError
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.result import Instances
from condinst_infer.workers import groups, in_order


def predict(args: argparse.Namespace) -> int:
    """0 if all images were done, 1 if some could not be read; InputError if none could."""
    files = image_files(args.source, args.output)
    jobs = jobs_of(files, args)
    results: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    start = time.perf_counter()
    workers = options.workers(args, len(jobs))
    pipeline = load(
        args.model,
        **options.runtime(args),
        workers=workers,
        max_pixels=args.max_pixels,
        max_batch=args.batch,
    )
    # none on a pipe (None), and on a terminal only when it takes longer than two seconds
    with pipeline, tqdm(total=len(jobs), unit="image", disable=None, delay=2) as bar:
        work = (PanopticWork if args.panoptic else Work)(pipeline, args)
        parts = groups(jobs, max(args.batch, pipeline.metadata.batch or 1))
        with closing(in_order(work, parts, workers=workers)) as done:
            for result, found in chain.from_iterable(done):
                bar.update()
                if "error" not in result:
                    results.append(result)
                    rows += found
                    continue
                failed.append(result)
                if len(files) > 1:  # that of a single file is raised below
                    tqdm.write(f"condinst: {result['error']}", file=sys.stderr)
    if files and len(failed) == len(files):
        raise InputError(failed[0]["error"] if len(files) == 1 else "no image could be read.")
    coco = args.output / work.coco_name if args.coco_json else None
    if coco is not None:
        write_coco(coco, work.coco(results, rows))
    _report(results, failed, coco, time.perf_counter() - start, args, work.noun)
    return 1 if failed else 0


def _report(
    results: list[dict[str, Any]],
    failed: list[dict[str, str]],
    coco: Path | None,
    seconds: float,
    args: argparse.Namespace,
    noun: str,
) -> None:
    if args.json:
        data = {"images": results, "failed": failed, "seconds": round(seconds, 3)}
        print(json.dumps(data | {"coco_json": None if coco is None else str(coco)}))
        return
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
