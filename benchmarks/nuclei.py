"""The accuracy of the model that ships with the package, on the very files, in every precision.

    python -m benchmarks.nuclei --annotations instances_val_rle.json --images images/val
        --calibration images/train [--run RUN]

Writes results/accuracy/nuclei.json, from which docs/tutorials/nuclei.md has its numbers. int8 is
calibrated on the images it was trained on. RUN is a training with the card's command on an idle
machine; its first hundred iterations will do. Without one, what the result says of it stays.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

import condinst_infer
from condinst_infer import checkpoint
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.evaluation.average_precision import CocoTruth, detect, read_truth, score
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.quantization.int8 import export_int8
from condinst_infer.results.draw import overlay
from condinst_infer.system.outputs import atomic_file
from condinst_infer.train.records import crop_from_rle

DATA = Path(condinst_infer.__file__).parent / "data"
RESULT = Path(__file__).parent / "results" / "accuracy" / "nuclei.json"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SHIPPED = "nuclei.onnx, ONNX Runtime, fp32"
MAX_DETECTIONS = 500  # an image of the data set has up to 375 nuclei
SHOWN = 0.4  # score of what failures are drawn with
# picture -> first letters of the file, and (top, left, side) of the part that is shown
FAILURES = {
    "brightfield": ("4e07a653", (300, 300, 400)),
    "rim": ("538b7673", (150, 60, 300)),
    "tissue": ("7798ca1d", (0, 0, 320)),
}


class Artefact(NamedTuple):
    """A model file, and how it is loaded."""

    path: Path
    runtime: str | None = None
    precision: str | None = None


def artefacts(folder: Path, calibration: Path) -> dict[str, Artefact]:
    """What is measured, by name; files that don't ship are made in `folder`."""
    source, shipped = DATA / "nuclei.safetensors", DATA / "nuclei.onnx"
    half, int8 = folder / "nuclei.fp16.onnx", folder / "nuclei.int8.onnx"
    model, digest = checkpoint.load(source), file_sha256(source)
    export_onnx(model, half, precision="fp16", checkpoint_sha256=digest)
    print(export_int8(model, int8, sorted(calibration.iterdir()), checkpoint_sha256=digest))
    return {
        "nuclei.safetensors, PyTorch, fp32": Artefact(source),
        SHIPPED: Artefact(shipped),
        "exported with --precision fp16, ONNX Runtime": Artefact(half),
        "nuclei.onnx, OpenVINO, bf16": Artefact(shipped, "openvino", "bf16"),
        "exported with --precision int8, ONNX Runtime": Artefact(int8),
        "exported with --precision int8, OpenVINO": Artefact(int8, "openvino"),
    }


def measure(truth: CocoTruth, images: Path, calibration: Path) -> dict[str, Any]:
    """Box and mask AP of each artefact, and of the ONNX file's masks by group of images."""
    group_of = {i["id"]: i["group"] for i in json.loads(truth.file.read_text())["images"]}
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, runtime, precision) in artefacts(Path(folder), calibration).items():
            with condinst_infer.load(path, runtime=runtime, precision=precision) as pipeline:
                detections = detect(pipeline, truth, images)
            result = score(truth, detections, max_detections=MAX_DETECTIONS)
            sha256 = file_sha256(path)
            rows.append({"artefact": name, "sha256": sha256, **asdict(result)})
            print(f"{name}: box AP {result.box['AP']:.2f}, mask AP {result.mask['AP']:.2f}")
            found = detections if name == SHIPPED else found
    groups = []
    for group in sorted(set(group_of.values())):
        part = only(truth, {image for image in truth.images if group_of[image] == group})
        result = score(part, found, max_detections=MAX_DETECTIONS)
        count = len(part.annotations)
        groups.append({"group": group, "images": result.images, "nuclei": count, **result.mask})
    return {"artefacts": rows, "groups": groups}


def only(truth: CocoTruth, images: set[int]) -> CocoTruth:
    """`truth` of some of its images."""
    return truth._replace(
        images={image: name for image, name in truth.images.items() if image in images},
        annotations=[a for a in truth.annotations if a["image_id"] in images],
    )


def draw(truth: CocoTruth, images: Path) -> None:
    """Write the pictures of the model card: the demo, and failures beside the ground truth."""
    with condinst_infer.load(DATA / "nuclei.onnx") as pipeline:
        _write(PICTURES / "demo.jpg", pipeline(DATA / "nuclei.jpg").plot())
        for name, (start, (top, left, side)) in FAILURES.items():
            image = next(i for i, file in truth.images.items() if file.startswith(start))
            result = pipeline(images / truth.images[image], score_threshold=SHOWN)
            crops = [
                crop_from_rle(a["segmentation"])
                for a in truth.annotations
                if a["image_id"] == image
            ]
            assert result.image is not None
            both = [overlay(result.image, crops), result.plot(labels=False)]
            parts = [picture[top : top + side, left : left + side] for picture in both]
            size = (480, 480 * parts[0].shape[0] // parts[0].shape[1])
            parts = [cv2.resize(part, size, interpolation=cv2.INTER_CUBIC) for part in parts]
            gap = np.full((size[1], 12, 3), 255, np.uint8)
            _write(PICTURES / f"{name}.jpg", np.hstack([parts[0], gap, parts[1]]))


def _write(path: Path, picture: np.ndarray) -> None:
    with atomic_file(path) as part:
        cv2.imwrite(str(part), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])


def training(run: Path) -> dict[str, Any]:
    """What the log of the run says of its speed and memory; `minutes` are for all iterations."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    settings: Mapping[str, Any] = json.loads((run / "config.json").read_text())["settings"]
    rows = [row for row in rows if "images_per_second" in row]
    speed = statistics.median(row["images_per_second"] for row in rows)
    images = settings["iterations"] * settings["images_per_batch"]
    return {
        "iterations": settings["iterations"],
        "images_per_batch": settings["images_per_batch"],
        "images_per_second": speed,
        "minutes": images / speed / 60,
        "memory_gb": max(row["memory_gb"] for row in rows),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description="Accuracy of the nuclei model.")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="for int8")
    parser.add_argument("--run", type=Path, metavar="RUN", help="of the training")
    args = parser.parse_args()
    truth = read_truth(args.annotations)
    result = measure(truth, args.images, args.calibration)
    draw(truth, args.images)
    if args.run:
        trained = training(args.run) | {"environment": environment()}
    else:
        last = json.loads(RESULT.read_text())
        trained = {"environment": last["environment"], **last["training"]}
    write_result(RESULT, result | {"training": trained, "environment": environment()})


if __name__ == "__main__":
    main()
