"""Other packages for instance segmentation beside ours: one image, 100 instances, on the CPU.

    python3.11 -m venv rivals && rivals/bin/pip install -e '.[cpu,export]' supervision matplotlib
    rivals/bin/pip install --no-deps ultralytics ultralytics-thop rfdetr transformers
    rivals/bin/pip install polars psutil requests pydantic pydeprecate regex tokenizers \
        huggingface_hub
    rivals/bin/python -m benchmarks.competitors

None of these is a dependency of ours: Ultralytics is AGPL-3.0, RF-DETR Apache-2.0. They need
torchvision; where there is none, a stand-in has what runs here (benchmarks/torchvision_stub.py).

Inside the time: from a frame in memory to dense masks [K, 480, 640] by the package's own call.
Each network has random weights of its own and the input size of its package, and is made to give
100 instances, so that all have as many masks to make: Ultralytics by `max_det=100` and the score
of the 120th as `conf`, which leaves its NMS next to nothing to do (it drops empty masks, so a few
may be missing); RF-DETR by `threshold=0` with its 100 queries, after its own `inference()`.
So this compares speed; what each finds when trained is in the papers and model cards.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks import harness, synthetic_models, torchvision_stub
from benchmarks.pipelines import Ours
from condinst_infer import checkpoint
from condinst_infer.profiling.environment import environment, write_result

YOLO = ("yolo11n-seg", "yolo11m-seg")
RF_DETR = ("RFDETRSegNano", "RFDETRSegSmall")
LEAST = 95  # masks that a side must give


class Side(NamedTuple):
    """One network in one runtime; `masks` gives them, bool [K, H, W]."""

    name: str
    package: str
    runtime: str
    canvas: tuple[int, int]
    parameters: int
    masks: Callable[[], np.ndarray]


def ours(name: str, folder: Path, frame: np.ndarray, threads: int, **changes: Any) -> Side:
    """Our pipeline in ONNX Runtime."""
    parameters = _parameters(
        checkpoint.load(synthetic_models.checkpoint_file(name, folder, **changes))
    )
    side = Ours(synthetic_models.onnx_file(name, folder, **changes), frame, threads=threads)
    runtime = side.artefact["runtime"]
    return Side(name, "condinst-infer", runtime, side.canvas, parameters, side.dense)


def yolo(name: str, folder: Path, frame: np.ndarray) -> Iterator[Side]:
    """A model of Ultralytics in PyTorch, and its export in ONNX Runtime."""
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ["YOLO_CONFIG_DIR"] = str(folder)
    torchvision_stub.stand_in()
    from ultralytics import YOLO as Model  # pyright: ignore

    model = Model(f"{name}.yaml")
    _enliven(model.model)
    parameters = _parameters(model.model)
    canvas = (-(-frame.shape[0] // 32) * 32, -(-frame.shape[1] // 32) * 32)
    options = {"imgsz": canvas, "iou": 1.0, "verbose": False, "device": "cpu"}
    scores = model.predict(frame, conf=0.0, max_det=200, **options)[0].boxes.conf
    options |= {"conf": float(scores[119]), "max_det": synthetic_models.INSTANCES}
    options |= {"retina_masks": True}  # what it calls masks of the image's size

    def masks(of: Any) -> np.ndarray:
        return of.predict(frame, **options)[0].masks.data.numpy().view(bool)

    with contextlib.chdir(folder):  # where it writes
        file = folder / model.export(format="onnx", imgsz=canvas, simplify=False, verbose=False)
    exported = Model(file, task="segment")
    for runtime, of in (("PyTorch", model), ("ONNX Runtime", exported)):
        package = f"ultralytics {version('ultralytics')}"
        yield Side(name, package, runtime, canvas, parameters, lambda of=of: masks(of))


def rf_detr(name: str, folder: Path, frame: np.ndarray) -> Iterator[Side]:
    """A model of RF-DETR in PyTorch, as its `inference()` makes it."""
    torchvision_stub.stand_in()
    logging.disable(logging.WARNING)  # that the weights are not theirs
    import rfdetr  # pyright: ignore

    model = getattr(rfdetr, name)(pretrain_weights=None, device="cpu")
    parameters = _parameters(model.model.model)
    model.inference()
    rgb = np.ascontiguousarray(frame[:, :, ::-1])
    side = model.model.resolution

    def masks() -> np.ndarray:
        return model.predict(rgb, threshold=0.0, include_source_image=False).mask

    package = f"rfdetr {version('rfdetr')}"
    yield Side(name, package, "PyTorch, TorchScript", (side, side), parameters, masks)


def _enliven(model: nn.Module) -> None:
    """Weights under which boxes, scores and masks differ: as made, all outputs are alike."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "dfl" not in name:  # that one is no weight
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            last = ".cv2." in name or ".cv3." in name  # boxes and scores
            if last and name.endswith(".2"):
                module.weight.data *= 0.1


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def measure(sides: list[Side], *, repeats: int, threads: int) -> dict[str, Any]:
    """Time all sides interleaved, ours first; sides with other masks to make are rejected."""
    torch.set_num_threads(threads)
    rows, functions = [], []
    for side in sides:
        masks = side.masks()
        right = masks.dtype == bool and masks.shape[1:] == synthetic_models.FRAME
        if not (right and LEAST <= len(masks) <= synthetic_models.INSTANCES):
            raise SystemExit(f"{side.name} gives masks {masks.dtype} {masks.shape}.")
        functions.append({f"{side.name}, {side.runtime}": side.masks})
        area = float(np.median(masks.sum((1, 2))))
        row = side._asdict() | {"instances": len(masks), "median_mask_area_px": area}
        rows.append({name: value for name, value in row.items() if name != "masks"})
    times = harness.summaries(functions, repeats=repeats)
    ours_ms = times[f"{sides[0].name}, {sides[0].runtime}"]["p50"]
    for row in rows:
        row["times_ms"] = times[f"{row['name']}, {row['runtime']}"]
        row["ratio"] = row["times_ms"]["p50"] / ours_ms
    return {"image": list(synthetic_models.FRAME), "threads": threads, "sides": rows}


def main() -> None:
    """Measure, print one line per side, write the result."""
    options = harness.parser(__doc__, "rivals.json", repeats=10).parse_args()
    torch.manual_seed(0)
    frame = synthetic_models.frame()
    with synthetic_models.folder(options.keep) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = folder.resolve()
        sides = [ours(name, folder, frame, options.threads) for name in options.models]
        for name in YOLO:
            sides += yolo(name, folder, frame)
        for name in RF_DETR:
            sides += rf_detr(name, folder, frame)
        result = measure(sides, repeats=options.repeats, threads=options.threads)
    for row in result["sides"]:
        what = f"{row['name']}, {row['runtime']}"
        print(f"{what}: {row['times_ms']['p50']:.0f} ms, {row['ratio']:.2f} of ours")
    write_result(options.output, {**result, "environment": environment()})


if __name__ == "__main__":
    sys.exit(main())
