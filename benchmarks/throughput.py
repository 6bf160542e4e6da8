"""Images per second over a folder: workers, threads of the model in each, and batches.

    python -m benchmarks.throughput

Inside the time: what `condinst predict` does to an image, from a JPEG file to boxes, masks, COCO
rows and an overlay encoded as JPEG; ONNX Runtime, float32. The first combination is one call after
the other on all cores. Needs the `export` extra.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2

import condinst_infer
from benchmarks import synthetic_models
from condinst_infer import Pipeline, load
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.system import timing
from condinst_infer.system.hardware import usable_cores
from condinst_infer.system.ordered_map import groups, in_order

RESULT = Path(__file__).parent / "results" / "whole_image" / "throughput.json"
DATA = Path(condinst_infer.__file__).parent / "data"
NUCLEI = "nuclei"  # the model and the photograph that ship with the package


class Combination(NamedTuple):
    """How the cores are used."""

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} threads, batch {self.batch}"


def combinations(cores: int) -> list[Combination]:
    """One worker on all cores, workers of one thread, more threads than cores, and batches."""
    made = [
        (1, cores, 1),
        (cores, 1, 1),
        (cores, 2, 1),
        (1, cores, 4),
        (1, cores, 8),
        (cores, 1, 4),
    ]
    return [Combination(*numbers) for numbers in made]


def worked_off(pipeline: Pipeline, photo: Path, images: int, how: Combination) -> None:
    """Predict the same file `images` times."""

    def work(files: list[Path]) -> None:
        for result in pipeline(files):
            result.to_coco(1)
            cv2.imencode(".jpg", result.plot(), [cv2.IMWRITE_JPEG_QUALITY, 92])

    for _ in in_order(work, groups([photo] * images, how.batch), workers=how.workers):
        pass


def measure(model: Path, photo: Path, *, images: int, repeats: int) -> dict[str, Any]:
    """Images per second of each combination, median of `repeats` rounds of `images`."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for how in combinations(usable_cores()):  # one at a time: all would not fit into memory
            with load(
                model, threads=how.threads, workers=how.workers, max_batch=how.batch
            ) as pipeline:
                turn = {str(how): partial(worked_off, pipeline, photo, images, how)}
                for name, taken in timing.time_interleaved(turn, repeats=1).items():
                    times.setdefault(name, []).extend(taken)
    with load(model) as pipeline:
        found = len(pipeline(photo))
    summaries = {name: timing.summary(values) for name, values in times.items()}
    return {
        "what": f"{model.name.partition('.')[0]}, {found} instances, JPEG file to JPEG overlay",
        "images": images,
        "times_ms": summaries,
        "images_per_second": {n: 1000 * images / s["p50"] for n, s in summaries.items()},
    }


def main() -> None:
    """Measure, print one line per combination, write the result."""
    parser = argparse.ArgumentParser(description="images per second over a folder")
    parser.add_argument("--images", type=int, default=16, help="of one round (default: 16)")
    parser.add_argument("--repeats", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where exported models stay")
    parser.add_argument(
        "--models", nargs="+", default=[NUCLEI, *synthetic_models.MODELS], metavar="NAME"
    )
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    options = parser.parse_args()
    results = []
    with synthetic_models.folder(options.keep) as into:
        frame = into / "frame.jpg"
        cv2.imwrite(str(frame), synthetic_models.frame())
        for name in options.models:
            nuclei = name == NUCLEI
            model = DATA / "nuclei.onnx" if nuclei else synthetic_models.onnx_file(name, into)
            photo = DATA / "nuclei.jpg" if nuclei else frame
            result = measure(model, photo, images=options.images, repeats=options.repeats)
            results.append(result)
            print(result["what"])
            for combination, rate in result["images_per_second"].items():
                print(f"  {combination}: {rate:.2f} images/s")
    write_result(options.output, {"results": results, "environment": environment()})


if __name__ == "__main__":
    main()
