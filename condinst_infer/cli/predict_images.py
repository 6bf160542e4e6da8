"""What `condinst predict` does to an image, and the COCO file it ends with."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer.cli.sources import ImageFile, VideoSource
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.system.files import replacing

FILTERS = ("score_threshold", "max_detections", "classes")
THRESHOLDS = ("instance_threshold", "overlap_threshold", "stuff_area_limit")


class Job(NamedTuple):
    """An image and where its results go."""

    file: ImageFile
    image_id: int
    overlay: Path | None
    png: Path | None  # of a panoptic segmentation


class Done(NamedTuple):
    """What is reported of an image, or why it could not be read."""

    report: dict[str, Any]
    rows: list[dict[str, Any]]  # its part of the COCO file


class Work:
    """All that is done to a few images: read, find, draw, write; several threads call it."""

    noun, coco_name = "instances", "detections.json"
    taken, refused = FILTERS, {name: "it goes with --panoptic" for name in THRESHOLDS}

    def __init__(self, pipeline: Pipeline, args: argparse.Namespace) -> None:
        self.pipeline, self._max_pixels = pipeline, args.max_pixels
        self._options = {name: getattr(args, name) for name in self.taken}
        for name, reason in self.refused.items():
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} can't be used here: {reason}.")

    def __call__(self, jobs: list[Job]) -> list[Done]:
        return [
            Done({"file": str(job.file.path), "error": str(found)}, [])
            if isinstance(found, InputError)
            else self._written(job, found)
            for job, found in zip(jobs, self.each([job.file.path for job in jobs]), strict=True)
        ]

    def each(self, paths: Sequence[Path]) -> list[Any | InputError]:
        """The result of each file, or why it can't be read."""
        images = [self._read(path) for path in paths]
        results = iter(self.find([i for i in images if not isinstance(i, InputError)]))
        return [i if isinstance(i, InputError) else next(results) for i in images]

    def _read(self, path: Path) -> np.ndarray | InputError:
        try:
            return read_image(path, max_pixels=self._max_pixels)
        except InputError as error:
            return error

    def find(self, images: list[np.ndarray]) -> Sequence[Any]:
        """The result of each image."""
        return self.pipeline(images, **self._options)

    def _written(self, job: Job, result: Any) -> Done:
        """Write the overlay of one image."""
        rows = [row | {"file_name": job.file.path.name} for row in result.to_coco(job.image_id)]
        return Done(_report(job, result.image_size, {"instances": len(result)}, result), rows)

    def coco(self, reports: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Any:
        """The content of the COCO file: `rows` of all images."""
        return rows


class PanopticWork(Work):
    """The same for panoptic segmentations, which also write a PNG each."""

    noun, coco_name = "segments", "panoptic.json"
    taken = THRESHOLDS
    refused = dict.fromkeys(FILTERS, "every pixel counts; use --instance-threshold")

    def find(self, images: list[np.ndarray]) -> Sequence[Any]:
        """The result of each image."""
        return self.pipeline.panoptic(images, **self._options)

    def _written(self, job: Job, result: Any) -> Done:
        """Write the overlay and the PNG of one image."""
        if job.png is not None:
            result.write_png(job.png)
        found = {
            "segments": len(result.segments),
            "things": sum(segment.is_thing for segment in result.segments),
            "png": None if job.png is None else str(job.png),
        }
        name = "" if job.png is None else job.png.name
        height, width = result.id_map.shape
        return Done(
            _report(job, (height, width), found, result), [result.to_coco(job.image_id, name)]
        )

    def coco(self, reports: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Any:
        """A COCO panoptic file: images, annotations and categories."""
        config = self.pipeline.config
        kinds = (
            (config.category_ids, config.class_names, 1),
            (config.panoptic.stuff_ids, config.panoptic.stuff_names, 0),
        )
        return {
            "images": [
                {
                    "id": report["image_id"],
                    "file_name": Path(report["file"]).name,
                    "height": report["size"][0],
                    "width": report["size"][1],
                }
                for report in reports
            ],
            "annotations": rows,
            "categories": [
                {"id": id_, "name": name, "isthing": thing}
                for ids, names, thing in kinds
                for id_, name in zip(ids, names, strict=True)
            ],
        }


def _report(
    job: Job, size: tuple[int, int], found: dict[str, Any], result: Instances | PanopticSegmentation
) -> dict[str, Any]:
    """Draw the overlay, if one is wanted, and say what was found."""
    if job.overlay is not None:
        write_image(job.overlay, result.plot())
    return {
        "file": str(job.file.path),
        "image_id": job.image_id,
        "size": list(size),
        **found,
        "overlay": None if job.overlay is None else str(job.overlay),
    }


def jobs_of(files: list[ImageFile], args: argparse.Namespace) -> list[Job]:
    """Every image with its number and the files its results go to."""
    nowhere: list[Path | None] = [None] * len(files)
    overlays = pngs = nowhere
    if args.overlays:
        overlays = result_paths(files, args.output, "overlay", _overlay_suffix)
    if args.panoptic and args.coco_json:
        folder = args.output / Path(PanopticWork.coco_name).stem
        # COCO's file names have no folder, so neither have these
        flat = [ImageFile(path, Path(name.name)) for path, name in files]
        pngs = result_paths(flat, folder, "PNG", lambda _: ".png")
    ids = image_ids([file.path for file in files])
    return [Job(*parts) for parts in zip(files, ids, overlays, pngs, strict=True)]


def _overlay_suffix(name: Path) -> str:
    return ".png" if name.suffix.lower() == ".png" else ".jpg"


def result_paths(
    files: Sequence[ImageFile] | Sequence[VideoSource],
    output: Path,
    what: str,
    suffix_of: Callable[[Path], str],
) -> list[Path | None]:
    """Where each result goes: no two are the same, none is one of the sources."""
    sources = {file.path.resolve() for file in files}
    taken: set[Path] = set()
    paths: list[Path | None] = []
    for _, name in files:
        suffix = suffix_of(name)
        path, number = output / name.with_suffix(suffix), 1
        while path in taken:
            number += 1
            path = output / name.with_name(f"{name.stem}-{number}{suffix}")
        if path.resolve() in sources:
            raise ConfigError(
                f"the {what} of {name} would overwrite the source {path}; give another folder "
                "with -o, or --no-overlays."
            )
        taken.add(path)
        paths.append(path)
    return paths


def image_ids(paths: Sequence[Path]) -> list[int]:
    """The numbers the files are named by, as COCO's are; else 1, 2, 3, ..."""
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(paths) + 1))


def found_in(result: Instances | PanopticSegmentation, image_id: int) -> dict[str, Any]:
    """What a line of JSON says about one image: COCO results, or segments with RLEs."""
    if isinstance(result, Instances):
        return {"detections": result.to_coco(image_id)}
    infos = result.to_coco(image_id, "")["segments_info"]
    pairs = zip(infos, result.rle(), strict=True)
    return {"segments": [info | {"segmentation": rle} for info, rle in pairs]}


def write_coco(path: Path, content: Any) -> None:
    """`content` as JSON."""
    with replacing(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def write_image(path: Path, image: np.ndarray) -> None:
    """`image`, BGR uint8 [H, W, 3], as the file format of the suffix of `path`."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, image, quality)
    if not done:
        raise InputError(f"{path} can't be written: OpenCV can't encode {path.suffix}.")
    with replacing(path) as part:
        part.write_bytes(data.tobytes())
