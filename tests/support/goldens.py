"""The reference numbers in tests/data/goldens, and the weights they were made with."""

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condinst_infer.checkpoint import model_from_adelaidet, model_from_mmdet
from condinst_infer.config.model import CondInstConfig
from condinst_infer.model.condinst import CondInst
from condinst_infer.train.targets import GroundTruth, ground_truth

FOLDER = Path(__file__).parents[1] / "data" / "goldens"
SETS = ("A_R50_1x", "C_RT_R50_shtw", "D_RT_DLA34_shtw", "M_mmdet_R50")
TRAINED_SETS = ("A_R50_1x", "C_RT_R50_shtw", "M_mmdet_R50")  # with a training step
DENSE_SHIFT = 1.25  # added to every class logit in the dense cases

# text in the name -> gain of a convolution's weights; the first that fits, otherwise 1
_GAINS = {
    "stem.conv1.weight": 1 / 60,
    "base_layer.0.weight": 1 / 60,
    "fpn_lateral": 0.5,
    "fpn_output": 0.5,
    "ctrness.weight": 0.7,
    "controller.weight": 0.8,
    "mask_branch.tower.4.weight": 0.7,
    "mask_branch.logits.weight": 0.5,
}
_GAINS_MMDET = {
    "lateral_convs.": 0.5,
    "fpn_convs.0.": 0.5,
    "fpn_convs.1.": 0.5,
    "fpn_convs.2.": 0.5,
    "conv_centerness.weight": 0.7,
    "controller.weight": 0.8,
    "conv_pred.weight": 0.7,
}


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of the file `name`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@functools.cache
def facts(name: str) -> dict[str, Any]:
    """Configuration and bookkeeping of the file `name`."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@functools.cache
def model(name: str) -> CondInst:
    """Our network with the weights of set `name`."""
    made = model_from_mmdet if "mmdet" in name else model_from_adelaidet
    return made(state_dict(name), facts(name)["cfg"])


def state_dict(name: str) -> dict[str, torch.Tensor]:
    """The weights of set `name` under their official names."""
    return {
        key: torch.from_numpy(np.asarray(_weight(facts(name), key, shape), dtype))
        for key, shape, dtype in facts(name)["state_dict"]
    }


def _weight(fact: dict[str, Any], name: str, shape: list[int]) -> Any:
    """One array: a single draw from a generator that the name seeds."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    mmdet = any(key == "backbone.conv1.weight" for key, _, _ in fact["state_dict"])
    if name == "mask_head.sizes_of_interest":
        return fact["sizes_of_interest_buffer"]
    if name == "mask_head._iter" or name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if len(shape) == 4:
        gains = _GAINS_MMDET if mmdet else _GAINS
        gain = next((g for text, g in gains.items() if text in name), 1)
        return gain * np.sqrt(2 / (shape[1] * shape[2] * shape[3])) * rng.standard_normal(shape)
    if name.endswith("running_mean"):
        return 0.1 * rng.standard_normal(shape)
    if name.endswith(("running_var", ".scale")):
        return rng.uniform(0.8, 1.2, shape)
    if name.endswith(".weight"):
        small = ("bn3.weight",) if mmdet else ("conv3.norm.weight", "bn2.weight")
        return (0.2 if name.endswith(small) else 1) * rng.uniform(0.8, 1.2, shape)
    assert name.endswith(".bias"), name
    offset = 0.0
    if name.endswith(("cls_logits.bias", "conv_cls.bias")):
        offset = fact["weight_rule"]["cls_logits_bias_offset"]
    elif name.endswith(("bbox_pred.bias", "conv_reg.bias")):
        offset = 3.0
    elif name.endswith("mask_branch.logits.bias"):
        offset = -3.0
    return offset + 0.05 * rng.standard_normal(shape)


def feeds(name: str, case: str) -> dict[str, np.ndarray]:
    """Graph inputs of case "img0", "img1" or "batch"; the padding holds noise, as it may."""
    golden = arrays(name)
    images = golden["batch_images"] if case == "batch" else golden[case][None]
    _, _, height, width = golden[f"{case}_padded_nchw"]
    canvas = np.random.default_rng(0).integers(0, 256, (len(images), height, width, 3), np.uint8)
    canvas[:, : images.shape[1], : images.shape[2]] = images
    sizes = np.array([images.shape[1:3]] * len(images), np.int32)
    return {"images": canvas, "image_sizes": sizes}


def training_images() -> tuple[torch.Tensor, torch.Tensor]:
    """The two images of the training step and their sizes, as the network takes them."""
    golden = arrays("train")
    _, _, height, width = golden["padded_nchw"]
    images = np.zeros((2, height, width, 3), np.uint8)
    for canvas, image in zip(images, (golden["img0"], golden["img1"]), strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    sizes = [golden[f"img{i}"].shape[:2] for i in (0, 1)]
    return torch.from_numpy(images), torch.tensor(sizes, dtype=torch.int32)


def training_truths(config: CondInstConfig) -> list[GroundTruth]:
    """What is in the two images of the training step."""
    golden, truths = arrays("train"), []
    _, _, height, width = golden["padded_nchw"]
    for i in (0, 1):
        rows, columns, _ = golden[f"img{i}"].shape
        masks = unpacked(golden[f"gt{i}_masks_packed"], (rows, columns))
        canvas = np.zeros((len(masks), height, width), bool)
        canvas[:, :rows, :columns] = masks
        truth = ground_truth(
            torch.from_numpy(canvas),
            torch.from_numpy(golden[f"gt{i}_boxes"]),
            torch.from_numpy(golden[f"gt{i}_classes"]),
            mask_stride=config.mask.mask_stride,
            feature_stride=config.mask_feature_stride,
        )
        truths.append(truth)
    return truths


def unpacked(packed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool masks [G, H, W] of `size` (H, W) from bits uint8 [G, ...]."""
    bits = np.unpackbits(packed, axis=1, count=size[0] * size[1])
    return bits.reshape(-1, *size).astype(bool)


def check_detections(
    name: str, case: str, outputs: dict[str, np.ndarray], slot: int, *, dense: bool = False
) -> None:
    """Assert that image `slot` of graph `outputs` is what set `name` has under `case`.

    Same count, the same set of (class, location), boxes within 0.01 pixel, scores within 1e-4.
    Order is free where scores are closer than 1e-5.
    """
    golden = arrays(name)
    boxes, scores, classes = (
        golden[f"{case}_det_{part}"] for part in ("boxes_net", "scores", "classes")
    )
    count = int(outputs["num_detections"][slot])
    assert count == len(scores)
    ours = {part: outputs[part][slot, :count] for part in ("boxes", "scores", "labels")}
    used = np.zeros(count, bool)
    for box, score, label in zip(boxes, scores, classes, strict=True):
        fits = (ours["labels"] == label) & ~used & (np.abs(ours["boxes"] - box) < 0.01).all(1)
        fits &= np.abs(ours["scores"] - score) < 1e-4
        assert fits.any(), f"{case}: no partner for {label} at {box}, score {score}"
        used[np.flatnonzero(fits)[0]] = True
    assert (np.diff(ours["scores"]) <= 1e-5).all()
    assert (outputs["labels"][slot, count:] == -1).all()
    for part in ("boxes", "scores", "masks"):
        assert not outputs[part][slot, count:].any()


def partners(name: str, case: str, boxes: np.ndarray, labels: np.ndarray) -> list[int]:
    """For each final detection of a case, the index of ours at the same place, each used once."""
    golden, free, found = arrays(name), list(range(len(boxes))), []
    source = golden[f"{case}_final_src"]
    classes = golden[f"{case}_det_classes"][source]
    for box, label in zip(golden[f"{case}_final_boxes"], classes, strict=True):
        near = min((i for i in free if labels[i] == label), key=lambda i: _far(boxes[i], box))
        assert _far(boxes[near], box) < 0.02
        free.remove(near)
        found.append(near)
    assert not free
    return found


def _far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def check_final(name: str, case: str, outputs: dict[str, np.ndarray], slot: int) -> None:
    """Assert boxes and masks at the output size: 99.8 % of the pixels of every instance."""
    from condinst_infer.processing.geometry import PlacedImage
    from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs

    golden = arrays(name)
    number = int(case.removeprefix("batch")) if case.startswith("batch") else None
    out_hw = golden["batch_out_hw"][number] if number is not None else golden[f"{case}_out_hw"]
    image = golden["batch_images"][number] if number is not None else golden[case]
    height, width = map(int, out_hw)
    net_size = (image.shape[0], image.shape[1])
    placed = PlacedImage(np.zeros((height, width, 3), np.uint8), net_size, net_size)
    result = instances_from_outputs(BatchOutputs(outputs), slot, placed, model(name).config)
    packed = golden[f"{case}_final_masks_packed"]
    masks = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width)
    order = partners(name, case, result.boxes, result.labels)
    agreement = (result.masks[order] == masks.astype(bool)).mean((1, 2))
    assert agreement.min() >= 0.998
