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

import cv2
import numpy as np
from tqdm import tqdm

from condinst_infer.commands import options
from condinst_infer.commands.files import ImageFile, image_files
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.output import replacing
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.preprocess import read_image
from condinst_infer.result import Instances
from condinst_infer.workers import groups, in_order

COCO_FILE = "detections.json"


def predict(args: argparse.Namespace) -> int:
    """0 if all images were done, 1 if some could not be read; InputError if none could."""
    files = image_files(args.source, args.output)
    overlays = _overlay_paths(files, args.output) if args.overlays else [None] * len(files)
    jobs = list(zip(files, overlays, _image_ids(files), strict=True))
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
        parts = groups(jobs, max(args.batch, pipeline.metadata.batch or 1))
        with closing(in_order(_Work(pipeline, args), parts, workers=workers)) as done:
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
    coco = args.output / COCO_FILE if args.coco_json else None
    if coco is not None:
        with replacing(coco) as part:
            part.write_text(json.dumps(rows), encoding="utf-8")
    _report(results, failed, coco, time.perf_counter() - start, args)
    return 1 if failed else 0


Job = tuple[ImageFile, Path | None, int]
Done = tuple[dict[str, Any], list[dict[str, Any]]]  # what is reported of an image; its COCO rows


class _Work:
    """All that is done to a few images: read, find, draw, write; several threads call it."""

    def __init__(self, pipeline: Pipeline, args: argparse.Namespace) -> None:
        self._pipeline, self._max_pixels = pipeline, args.max_pixels
        filters = ("score_threshold", "max_detections", "classes")
        self._filters = {name: getattr(args, name) for name in filters}

    def __call__(self, jobs: list[Job]) -> list[Done]:
        images = [self._read(job[0].path) for job in jobs]
        good = [image for image in images if not isinstance(image, InputError)]
        results = iter(self._pipeline(good, **self._filters))
        return [
            ({"file": str(job[0].path), "error": str(image)}, [])
            if isinstance(image, InputError)
            else _written(job, next(results))
            for job, image in zip(jobs, images, strict=True)
        ]

    def _read(self, path: Path) -> np.ndarray | InputError:
        try:
            return read_image(path, max_pixels=self._max_pixels)
        except InputError as error:
            return error


def _written(job: Job, result: Instances) -> Done:
    """Write the overlay of one image."""
    file, overlay, image_id = job
    if overlay is not None:
        write_image(overlay, result.plot())
    rows = [row | {"file_name": file.path.name} for row in result.to_coco(image_id)]
    return _summary(file, overlay, image_id, result), rows


def _overlay_paths(files: list[ImageFile], output: Path) -> list[Path | None]:
    """Where each overlay goes: no two are the same, none is one of the sources."""
    sources = {file.path.resolve() for file in files}
    taken: set[Path] = set()
    paths: list[Path | None] = []
    for _, name in files:
        suffix = ".png" if name.suffix.lower() == ".png" else ".jpg"
        path, number = output / name.with_suffix(suffix), 1
        while path in taken:
            number += 1
            path = output / name.with_name(f"{name.stem}-{number}{suffix}")
        if path.resolve() in sources:
            raise ConfigError(
                f"the overlay of {name} would overwrite the image {path}; give another folder "
                "with -o, or --no-overlays."
            )
        taken.add(path)
        paths.append(path)
    return paths


def _image_ids(files: list[ImageFile]) -> list[int]:
    """The numbers the files are named by, as COCO's are; else 1, 2, 3, ..."""
    stems = [file.path.stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(files) + 1))


def _summary(
    file: ImageFile, overlay: Path | None, image_id: int, result: Instances
) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "image_id": image_id,
        "size": list(result.image_size),
        "instances": len(result),
        "overlay": None if overlay is None else str(overlay),
    }


def _report(
    results: list[dict[str, Any]],
    failed: list[dict[str, str]],
    coco: Path | None,
    seconds: float,
    args: argparse.Namespace,
) -> None:
    if args.json:
        data = {"images": results, "failed": failed, "seconds": round(seconds, 3)}
        print(json.dumps(data | {"coco_json": None if coco is None else str(coco)}))
        return
    count = sum(result["instances"] for result in results)
    skipped = f", {len(failed)} skipped" if failed else ""
    print(f"{len(results)} images, {count} instances{skipped}, {seconds:.1f} s -> {args.output}")


def write_image(path: Path, image: np.ndarray) -> None:
    """`image`, BGR uint8 [H, W, 3], as the file format of the suffix of `path`."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, image, quality)
    if not done:
        raise InputError(f"{path} can't be written: OpenCV can't encode {path.suffix}.")
    with replacing(path) as part:
        part.write_bytes(data.tobytes())


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
