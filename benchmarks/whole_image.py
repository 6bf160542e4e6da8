"""A whole image on the CPU: our pipeline beside the same weights in PyTorch, deployed as usual.

    python -m benchmarks.whole_image

Inside the time: from a BGR frame in memory to boxes, scores, labels and boolean masks [K, H, W] of
its size; both sides resize it in the same way. Ours: the exported file in float32, in ONNX Runtime
and in OpenVINO. Beside it: PyTorch, eager; the controller on the whole pyramid, selection and NMS
in torch, one grouped convolution for the mask heads, aligned bilinear upsampling, sigmoid, and the
paste of benchmarks/paste.py. Weights are made up, so that there are 100 instances. Both sides must
find the same before anything is timed. Needs the extras `export` and `openvino`.
"""

import sys
from collections.abc import Mapping
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, synthetic_models
from benchmarks.pipelines import Ours
from condinst_infer import checkpoint, ops
from condinst_infer.model.condinst import CondInst
from condinst_infer.processing.geometry import placement
from condinst_infer.processing.preprocess import resize, stack_images
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.profiling.gpu.scenes import torch_probabilities
from condinst_infer.runtimes.runner import RUNTIMES

FIELDS = ("boxes", "labels", "masks")  # what must agree
LEAST_IOU = 0.99  # of boxes and masks of one instance; 0.998 was measured, of a mask


class Usual:
    """The same network as most deployments have it: PyTorch, no exact shortcut of ours."""

    def __init__(self, model: CondInst) -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Boxes in pixels of `image`, scores, labels, and masks bool [K, H, W]."""
        config = self.model.config
        size = (image.shape[0], image.shape[1])
        net_size, canvas = placement(size, config.input, None)
        feeds = stack_images([resize(image, net_size)], canvas)
        images, image_sizes = (torch.from_numpy(array) for array in feeds)
        raw = self.model.heads(images, image_sizes)
        found = self.model.before_nms(raw, image_sizes)
        keep, _ = ops.class_nms(
            found["candidate_boxes"],
            found["candidate_scores"],
            found["candidate_labels"],
            iou_threshold=config.detect.nms_iou,
            max_detections=config.detect.max_detections,
            runs=len(config.strides),
        )
        kept = keep[0, keep[0] >= 0].long()  # [K]
        locations = found["candidate_locations"][:, kept]
        masks = self._masks(raw.mask_features, found["params_map"], locations, canvas)
        scale = torch.tensor([size[1] / net_size[1], size[0] / net_size[0]] * 2)
        boxes = found["candidate_boxes"][0, kept] * scale
        limit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        native = torch_probabilities(masks[0], config.mask.mask_stride, net_size, size) > 0.5
        return {
            "boxes": torch.minimum(boxes.clamp(min=0), limit).numpy(),
            "scores": found["candidate_scores"][0, kept].sqrt().numpy(),
            "labels": found["candidate_labels"][0, kept].numpy(),
            "masks": native.numpy(),
        }

    def _masks(
        self, features: Tensor, params_map: Tensor, locations: Tensor, canvas: tuple[int, int]
    ) -> Tensor:
        """Probabilities [1, K, h, w] at the mask stride."""
        config = self.model.config
        shapes = [(-(-canvas[0] // s), -(-canvas[1] // s)) for s in config.strides]
        sizes_of_interest = config.heads.sizes_of_interest
        centres, sizes = ops.places_from_locations(
            locations, shapes, config.strides, sizes_of_interest
        )
        params = params_map[:, :, locations[0].long()].transpose(1, 2)  # [1, K, P]
        settings = dict(config.mask_head_settings)
        factor = settings.pop("factor")
        logits = ops.mask_logits_by_grouped_conv(features, params, centres, sizes, **settings)
        return ops.aligned_bilinear(logits, factor).sigmoid()


def agreement(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How far two sides found the same: each of ours beside the likest of theirs of its class."""
    counts = [len(ours["boxes"]), len(theirs["boxes"])]
    if 0 in counts:
        return {"instances": counts, "partners": 0, "least_box_iou": 0.0, "least_mask_iou": 0.0}
    boxes = _box_iou(ours["boxes"], theirs["boxes"])
    boxes[ours["labels"][:, None] != theirs["labels"]] = 0
    partner = boxes.argmax(1)
    a, b = ours["masks"], theirs["masks"][partner]
    union = (a | b).sum((1, 2))
    masks = np.where(union > 0, (a & b).sum((1, 2)) / np.maximum(union, 1), 1.0)
    return {
        "instances": counts,
        "partners": len(set(partner.tolist())),
        "least_box_iou": float(boxes.max(1).min()),
        "least_mask_iou": float(masks.min()),
    }


def agrees(found: Mapping[str, Any], instances: int) -> bool:
    """Whether both sides found the same `instances`."""
    same = found["instances"] == [instances, instances] and found["partners"] == instances
    return same and min(found["least_box_iou"], found["least_mask_iou"]) >= LEAST_IOU


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlaps [A, B] of boxes [A, 4] and [B, 4]."""
    corner = np.maximum(a[:, None, :2], b[:, :2])
    inside = (np.minimum(a[:, None, 2:], b[:, 2:]) - corner).clip(min=0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return inside / (areas[0][:, None] + areas[1] - inside)


def measure(
    name: str,
    folder: Path,
    *,
    repeats: int,
    threads: int,
    runtime: str = "onnxruntime",
    **changes: Any,
) -> dict[str, Any]:
    """One result: what both sides found, the times of both and their ratio, and our clocks."""
    torch.set_num_threads(threads)
    frame = synthetic_models.frame()
    usual = Usual(checkpoint.load(synthetic_models.checkpoint_file(name, folder, **changes)))
    path = synthetic_models.onnx_file(name, folder, **changes)
    with closing(Ours(path, frame, threads=threads, runtime=runtime)) as ours:
        found = ours.end_to_end()
        same = agreement({n: getattr(found, n) for n in FIELDS}, usual(frame))
        clocks = {
            "end_to_end": ours.end_to_end,
            "pipeline": ours.to_network_masks,
            "engine": ours.engine,
        }
        times = harness.summaries(
            [{"ours": ours.dense, **clocks}, {"torch": lambda: usual(frame)}], repeats=repeats
        )
    sides = {side: times.pop(side) for side in ("ours", "torch")}
    return {
        "model": name,
        "canvas": list(ours.canvas),
        "image": list(synthetic_models.FRAME),
        "artefact": ours.artefact,
        "against": "eager torch, naive mask heads and paste, same weights",
        "threads": threads,
        "median_mask_area_px": float(np.median(found.masks.sum((1, 2)))),
        "agreement": same,
        "agrees": agrees(same, ours.config.detect.max_detections),
        "times_ms": sides,
        "ratio": sides["torch"]["p50"] / sides["ours"]["p50"],
        "clocks_ms": times,
    }


def main() -> int:
    """Measure, print one line per model, write the result; 1 if the sides disagree."""
    options = harness.parser(__doc__, "whole_image.json", repeats=10).parse_args()
    results = []
    with synthetic_models.folder(options.keep) as folder:
        for name, runtime in product(options.models, RUNTIMES):
            settings = {"repeats": options.repeats, "threads": options.threads}
            result = measure(name, folder, runtime=runtime, **settings)
            if not result["agrees"]:
                print(
                    f"{name}, {runtime}: the sides disagree: {result['agreement']}", file=sys.stderr
                )
                return 1
            results.append(result)
            ours, torch_ms = (result["times_ms"][side]["p50"] for side in ("ours", "torch"))
            ratio = f"ratio {result['ratio']:.2f}"
            print(
                f"{name}, {runtime}: ours {ours:.0f} ms, torch {torch_ms:.0f} ms, {ratio}",
                flush=True,
            )
    write_result(options.output, {"results": results, "environment": environment()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
