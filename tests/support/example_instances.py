"""Instances that a program of export/examples wrote, compared with the pipeline's."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.model import MAX_PIXELS, Size
from condinst_infer.contract.model_file import model_path as file_of
from condinst_infer.processing import paste
from condinst_infer.processing.geometry import place_image
from condinst_infer.processing.postprocess import instances_from_outputs, select_slots
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner

_SCORES = 1e-5  # other kernels of the same network: 4e-7 seen in wasm
_BOXES = 1e-2  # pixels: 6e-5 seen in wasm and OpenVINO
_PIXELS = 1e-6  # share of all pixels of all masks
_PROBABILITY = 1e-4  # distance from 0.5 within which a pixel may fall on either side


class _Reference(NamedTuple):
    instances: Instances
    masks: np.ndarray  # probabilities at the mask stride, [K, h, w]
    stride: int
    net_size: Size


def assert_same_instances(
    instances_json: Path, model_path: Path | str, image_path: Path, *, exact: bool
) -> int:
    """Assert that a file of instances holds what the pipeline finds, in the same order.

    Args:
        instances_json: a list, best score first, of objects with label, score, box and
            segmentation (COCO RLE, uncompressed).
        model_path: an .onnx file, or "nuclei"; ONNX Runtime runs it here.
        image_path: the image that the program was given.
        exact: every number and every pixel is equal. Otherwise scores and boxes are close, and
            one pixel in a million may differ where its probability is 0.5 to 1e-4.

    Returns:
        The number of instances.
    """
    found = json.loads(instances_json.read_bytes())
    reference = _reference(file_of(model_path), image_path)
    expected = reference.instances
    assert len(found) == len(expected), f"{len(found)} instances; the pipeline finds {expected}"
    assert [one["label"] for one in found] == expected.labels.tolist()
    scores = np.array([one["score"] for one in found], np.float32)
    boxes = np.array([one["box"] for one in found], np.float32).reshape(-1, 4)
    assert np.abs(scores - expected.scores).max(initial=0) <= (0 if exact else _SCORES)
    assert np.abs(boxes - expected.boxes).max(initial=0) <= (0 if exact else _BOXES)
    pixels = sum(_different_pixels(one, k, reference) for k, one in enumerate(found))
    limit = 0 if exact else _PIXELS * len(found) * np.prod(expected.image_size)
    assert pixels <= limit, f"{pixels} pixels of all masks differ, {limit:.0f} may"
    return len(found)


def mask_from_runs(segmentation: dict[str, Any]) -> np.ndarray:
    """The mask bool [H, W] in an uncompressed COCO RLE."""
    rows, columns = segmentation["size"]
    counts = segmentation["counts"]
    assert all(count > 0 for count in counts[1:])  # only the first run may be empty
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(columns, rows).T


def _reference(model: Path, image_path: Path) -> _Reference:
    """The instances of one image, and the masks that they were pasted from."""
    runner = CpuRunner(OrtSession(model))
    config = runner.metadata.config
    image = read_image(image_path, max_pixels=MAX_PIXELS)
    placed = place_image(image, config.input, runner.metadata.size)
    batch = runner.run([placed])
    instances = instances_from_outputs(batch, 0, placed, config)
    slots = select_slots(batch, 0, placed, config, 0.0)
    masks = batch.outputs["masks"][0][slots]
    return _Reference(instances, masks, config.mask.mask_stride, placed.net_size)


def _different_pixels(one: dict[str, Any], k: int, reference: _Reference) -> int:
    """How many pixels of the k-th mask differ; each must be about 0.5."""
    mask = mask_from_runs(one["segmentation"])
    assert mask.shape == reference.instances.image_size
    differs = mask != reference.instances[k].mask
    if not differs.any():
        return 0
    sizes = zip(reference.net_size, mask.shape, reference.masks[k].shape, strict=True)
    rows, columns = (paste._axis(c, reference.stride, n, o).weights for n, o, c in sizes)
    probabilities = rows @ reference.masks[k].astype(np.float32) @ columns.T
    worst = np.abs(probabilities - 0.5)[differs].max()
    assert worst < _PROBABILITY, f"mask {k} differs {worst} away from 0.5"
    return int(differs.sum())
