"""Images of `condinst predict`: read, find, draw, write, and the COCO file at the end."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from condinst_infer.cli.options import PredictOptions
from condinst_infer.cli.sources import ImageFile, VideoSource
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.draw import write_image
from condinst_infer.system.ordered_map import run_over_images
from condinst_infer.system.paths import RealPaths
from condinst_infer.system.row_file import ROWS, RowFile, write_with_rows

if TYPE_CHECKING:
    from condinst_infer.results.instances import Instances
    from condinst_infer.results.panoptic import PanopticSegmentation


class ImageJob(NamedTuple):
    """An image and where its results go."""

    file: ImageFile
    image_id: int
    overlay: Path | None
    result: Path | None  # the PNG of a panoptic segmentation, a label file of YOLO or LabelMe


class ImageOutcome(NamedTuple):
    """The report on an image, or why it could not be read."""

    report: dict[str, Any]
    rows: list[dict[str, Any]]  # its part of the COCO file


class ImagePredictor:
    """Finds the instances in a few images and writes the results; several threads call it.

    Args:
        pipeline: stays the caller's.
        of_call: keyword arguments of each call of the pipeline.
        max_pixels: larger images are rejected.
        format_: of the results, as `--format` names it.
    """

    noun, coco_name = "instances", "detections.json"

    def __init__(
        self, pipeline: Pipeline, of_call: dict[str, Any], max_pixels: int, format_: str
    ) -> None:
        self.pipeline, self._of_call, self._max_pixels = pipeline, of_call, max_pixels
        self._format = format_

    def __call__(self, jobs: list[ImageJob]) -> list[ImageOutcome]:
        """Predict and write the results of each job; what fails costs no other image."""
        start = time.perf_counter()
        results = self.predict_files([job.file.path for job in jobs])
        outcomes = [self._outcome(job, result) for job, result in zip(jobs, results, strict=True)]
        seconds = round((time.perf_counter() - start) / len(jobs), 3)
        for outcome in outcomes:
            if "error" not in outcome.report:
                outcome.report["seconds"] = seconds
        return outcomes

    def _outcome(self, job: ImageJob, result: Any) -> ImageOutcome:
        """The outcome of one image, whose results are written."""
        if not isinstance(result, InputError):
            try:
                return self._write(job, result)
            except InputError as error:
                result = error
            except MemoryError:
                result = _too_large(job.file.path)
        return ImageOutcome({"file": str(job.file.path), "error": str(result)}, [])

    def predict_files(self, paths: Sequence[Path]) -> list[Any | InputError]:
        """The result of each file, or why there is none."""
        images = [self._read(path) for path in paths]
        whole = [image for image in images if not isinstance(image, InputError)]
        try:
            results = iter(self.predict(whole))
        except MemoryError:
            if len(paths) == 1:
                return [_too_large(paths[0])]
            return [self.predict_files([path])[0] for path in paths]
        return [i if isinstance(i, InputError) else next(results) for i in images]

    def _read(self, path: Path) -> np.ndarray | InputError:
        try:
            return read_image(path, max_pixels=self._max_pixels)
        except InputError as error:
            return error
        except MemoryError:
            return _too_large(path)

    def predict(self, images: list[np.ndarray]) -> Sequence[Any]:
        """The result of each image."""
        return self.pipeline(images, **self._of_call)

    def _write(self, job: ImageJob, result: Any) -> ImageOutcome:
        """Write the overlay and the label file of one image."""
        rows: list[dict[str, Any]] = []
        counts: dict[str, Any] = {"instances": len(result)}
        if self._format == "coco":
            name = job.file.path.name
            rows = [row | {"file_name": name} for row in result.to_coco(job.image_id)]
        elif self._format == "coco-dataset":
            rows = result.to_coco_annotations(job.image_id)
        elif job.result is not None:
            from condinst_infer.cli.predict_labels import write_labels

            counts["labels"] = str(job.result)
            counts["outer_rings"] = write_labels(job.result, job.file.path, result, self._format)
        return ImageOutcome(_report_on_image(job, result.image_size, counts, result), rows)

    def write_all(
        self, output: Path, reports: list[dict[str, Any]], rows: Iterable[dict[str, Any]]
    ) -> Path | None:
        """Write the file about all images, and return its path; None where there is none."""
        if self._format == "coco":
            path = output / self.coco_name
            write_with_rows(path, self.coco(reports), rows)
            return path
        if self._format in ("coco-dataset", "yolo"):
            from condinst_infer.cli.predict_labels import write_data_set

            return write_data_set(output, self._format, self.pipeline.config, reports, rows)
        return None

    def coco(self, reports: list[dict[str, Any]]) -> Any:
        """The content of the COCO file, with `ROWS` in the place of those of all images."""
        return ROWS


class PanopticPredictor(ImagePredictor):
    """Finds the segments in a few images, and also writes a PNG each."""

    noun, coco_name = "segments", "panoptic.json"

    def predict(self, images: list[np.ndarray]) -> Sequence[Any]:
        """The result of each image."""
        return self.pipeline.panoptic(images, **self._of_call)

    def _write(self, job: ImageJob, result: Any) -> ImageOutcome:
        """Write the overlay and the PNG of one image."""
        if job.result is not None:
            result.write_png(job.result)
        counts = {
            "segments": len(result.segments),
            "things": sum(segment.is_thing for segment in result.segments),
            "png": None if job.result is None else str(job.result),
        }
        name = "" if job.result is None else job.result.name
        report = _report_on_image(job, result.id_map.shape, counts, result)
        return ImageOutcome(report, [result.to_coco(job.image_id, name)])

    def coco(self, reports: list[dict[str, Any]]) -> Any:
        """The content of a COCO panoptic file: images, annotations and categories."""
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
            "annotations": ROWS,
            "categories": [
                {"id": id_, "name": name, "isthing": thing}
                for ids, names, thing in kinds
                for id_, name in zip(ids, names, strict=True)
            ],
        }


def _too_large(path: Path) -> InputError:
    return InputError(f"{path} needs more memory than there is; try --max-pixels, --batch 1.")


def predictor_for(pipeline: Pipeline, options: PredictOptions) -> ImagePredictor:
    """The predictor of instances or, with `--panoptic`, of segments."""
    kind = PanopticPredictor if options.panoptic else ImagePredictor
    return kind(pipeline, options.of_call(), options.max_pixels, options.result_format)


@dataclass
class ImagesDone:
    """Results of the images so far, also where an error or a signal ends the work early."""

    rows: RowFile  # of the COCO file
    reports: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    signal: int | None = None  # that ended the work


def predict_images(
    predictor: ImagePredictor,
    jobs: list[ImageJob],
    done: ImagesDone,
    *,
    workers: int,
    batch: int,
    tell_failures: bool,
    tell_results: bool,
) -> None:
    """Predict all images and note in `done` what is done; a signal ends that after a few images.

    Args:
        predictor: called by `workers` threads, each with `batch` jobs or as the file says.
        tell_failures: print what can't be read as it happens.
        tell_results: print a line per image.
    """
    size = max(batch, predictor.pipeline.metadata.batch or 1)
    with (
        closing(run_over_images(predictor, jobs, size, workers)) as outcomes,
        _stop_between(jobs) as came,
    ):
        for report, its_rows in outcomes:
            if "error" not in report:
                done.reports.append(report)
                done.rows.add(its_rows)
                if tell_results:
                    tqdm.write(_line(report))
            else:
                done.failed.append(report)
                if tell_failures:
                    tqdm.write(f"condinst: {report['error']}", file=sys.stderr)
            if came:
                done.signal = came[0]
                return


def _stop_between(jobs: Sequence[ImageJob]) -> AbstractContextManager[list[int]]:
    """As `stop_signals` where there is more than one image."""
    if len(jobs) == 1:
        return nullcontext([])
    from condinst_infer.system.signals import stop_signals

    return stop_signals()


def _line(report: dict[str, Any]) -> str:
    """A line about one image: its instances, its time, and the files of its results."""
    noun = "segments" if "segments" in report else "instances"
    classes = ", ".join(f"{count} {name}" for name, count in report["classes"].items())
    files = [report[name] for name in ("overlay", "labels", "png") if report.get(name)]
    where = f" -> {', '.join(files)}" if files else ""
    found = f"{report[noun]} {noun}{f' ({classes})' if classes else ''}"
    return f"{report['file']}: {found}, {report['seconds']:.2f} s{where}"


def _report_on_image(
    job: ImageJob,
    size: Sequence[int],
    counts: dict[str, Any],
    result: "Instances | PanopticSegmentation",
) -> dict[str, Any]:
    """Draw the overlay, if one is wanted, and report on the image."""
    if job.overlay is not None:
        write_image(job.overlay, result.plot())
    return {
        "file": str(job.file.path),
        "name": job.file.name.as_posix(),
        "image_id": job.image_id,
        "size": list(size),
        **counts,
        "classes": dict(Counter(one.name for one in result).most_common()),
        "overlay": None if job.overlay is None else str(job.overlay),
    }


def jobs_from_files(files: list[ImageFile], options: PredictOptions) -> list[ImageJob]:
    """Every image with its number and the files its results go to."""
    overlays: list[Path | None] = [None] * len(files)
    if options.overlays:
        overlays = result_paths(files, options.output, "overlay", _overlay_suffix)
    results: list[Path | None] = [None] * len(files)
    if options.panoptic and options.result_format == "coco":
        folder = options.output / Path(PanopticPredictor.coco_name).stem
        # COCO's file names have no folder, so neither have these
        flat = [ImageFile(path, Path(name.name)) for path, name in files]
        results = result_paths(flat, folder, "PNG", lambda _: ".png")
    elif options.result_format in ("yolo", "labelme", "coco-dataset"):
        results = _label_files(files, options)
    ids = image_ids([file.path for file in files])
    return [
        ImageJob(file=file, image_id=id_, overlay=overlay, result=result)
        for file, id_, overlay, result in zip(files, ids, overlays, results, strict=True)
    ]


def _label_files(files: list[ImageFile], options: PredictOptions) -> list[Path | None]:
    """The label file of each image; ConfigError if two images would share a file or a name."""
    from condinst_infer.cli.predict_labels import SUFFIXES, label_file

    format_ = options.result_format
    owners: dict[Path, Path] = {}
    labels: list[Path | None] = []
    for file in files:
        path = label_file(options.output, file.name, format_) if format_ in SUFFIXES else None
        place = path or file.name
        if (other := owners.setdefault(place, file.path)) != file.path:
            raise ConfigError(
                f"{other} and {file.path} would share {place}; predict them into two folders."
            )
        labels.append(path)
    return labels


def _overlay_suffix(name: Path) -> str:
    return ".png" if name.suffix.lower() == ".png" else ".jpg"


def result_paths(
    files: Sequence[ImageFile] | Sequence[VideoSource],
    output: Path,
    what: str,
    suffix_of: Callable[[Path], str],
) -> list[Path | None]:
    """The path of each result: no two are the same, none is one of the sources."""
    real_paths = RealPaths()
    sources = {real_paths.of(file.path) for file in files}
    taken: set[Path] = set()
    paths: list[Path | None] = []
    for _, name in files:
        suffix = suffix_of(name)
        path, number = output / name.with_suffix(suffix), 1
        while path in taken:
            number += 1
            path = output / name.with_name(f"{name.stem}-{number}{suffix}")
        if real_paths.of(path) in sources:
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
