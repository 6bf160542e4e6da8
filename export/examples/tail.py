"""The tail of a CondInst model in numpy: outputs of a file's detector cut become instances.

All that comes after the network, in order, for whoever ports it; tail.hpp is the same in C++.
Files of the full graph hold these steps up to the paste. Section numbers are of arXiv:2003.05664.

    python tail.py detector_outputs.npz -o instances.json

The .npz holds all outputs of the file by their names, and

    image_sizes     [N, 2]  the input of this name: rows and columns of the resized images
    original_sizes  [N, 2]  rows and columns of the images before that
    metadata        the text metadata_props["condinst"] of the file

With ONNX Runtime:

    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds)))
    metadata = session.get_modelmeta().custom_metadata_map["condinst"]
    np.savez("detector_outputs.npz", **outputs, metadata=metadata, original_sizes=...,
             image_sizes=feeds["image_sizes"])
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def instances(outputs: Mapping[str, np.ndarray], index: int = 0) -> Iterator[dict[str, Any]]:
    """The instances of image `index`, best score first; `outputs` is what the .npz holds."""
    metadata = json.loads(str(outputs["metadata"]))
    config = metadata["config"]
    detect, mask = config["detect"], config["mask"]
    if metadata["graph"] != "detector" or detect.get("nms", "box") != "box":
        raise ValueError("tail.py finishes files of --graph detector with box NMS, not this one.")
    names = ("boxes", "scores", "labels", "locations")
    boxes, scores, labels, locations = (outputs[f"candidate_{name}"][index] for name in names)
    features = outputs["mask_features"][index]  # [C, h, w], float16 in files of that precision
    net_size, image_size = outputs["image_sizes"][index], outputs["original_sizes"][index]

    feature_stride = 2 ** mask["mask_levels"][0]  # network pixels per cell of the features
    factor = feature_stride // mask["mask_stride"]
    centres, sizes = places(config["heads"], features.shape[1:], feature_stride)
    pixels = cell_centres(features.shape[1:], feature_stride).T  # [2, h*w]
    kept = class_nms(boxes, scores, labels, detect["nms_iou"], detect["max_detections"])
    # boxes from network pixels to those of the image
    (height, width), (net_height, net_width) = image_size, net_size
    scale = np.array([width / net_width, height / net_height] * 2, np.float32)
    boxes = np.clip(boxes * scale, 0, np.array([width, height] * 2, np.float32))
    for slot in kept:
        x1, y1, x2, y2 = boxes[slot]
        if not (x2 > x1 and y2 > y1):  # all of it lies in the padding
            continue
        at = locations[slot]
        x = mask_inputs(features, pixels, centres[at], sizes[at], mask)
        logits = mask_head(outputs["params_map"][index][:, at].astype(np.float32), x, mask)
        logits = aligned_bilinear(logits.reshape(features.shape[1:]), factor)
        with np.errstate(over="ignore"):  # far outside: 1 / inf is 0
            probabilities = (1 / (1 + np.exp(-logits))).astype(features.dtype)
        yield {
            "label": int(labels[slot]),
            "score": float(np.sqrt(scores[slot]) if detect["score_root"] else scores[slot]),
            "box": [float(side) for side in boxes[slot]],
            "mask": paste(probabilities, mask["mask_stride"], net_size, image_size),
        }


def class_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float, most: int
) -> list[int]:
    """Slots of the M candidates that greedy NMS within each class keeps, at most `most`."""
    order = np.argsort(-scores, kind="stable")  # ties go to the lower slot
    order = order[scores[order] > 0]  # -1 is an empty slot
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    kept = []
    while len(order) and len(kept) < most:
        i, order = int(order[0]), order[1:]
        kept.append(i)
        w = np.maximum(np.minimum(x2[order], x2[i]) - np.maximum(x1[order], x1[i]), 0)
        h = np.maximum(np.minimum(y2[order], y2[i]) - np.maximum(y1[order], y1[i]), 0)
        with np.errstate(invalid="ignore"):  # two boxes without area: 0 / 0 drops nothing
            iou = w * h / (areas[order] + areas[i] - w * h)
        order = order[~((iou > threshold) & (labels[order] == labels[i]))]
    return kept


def cell_centres(cells: tuple[int, ...], stride: int) -> np.ndarray:
    """(x, y) of all cells in network pixels, float32 [rows*columns, 2]."""
    y, x = np.indices(cells) * stride + stride // 2
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def places(
    heads: Mapping[str, Any], cells: tuple[int, ...], stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres [A, 2] of all locations and the object sizes [A] they stand for (section 3.2)."""
    centres, sizes = [], []
    for level, size in zip(heads["head_levels"], heads["sizes_of_interest"], strict=True):
        grid = tuple(-(-side * stride // 2**level) for side in cells)  # rounded up
        centres.append(cell_centres(grid, 2**level))
        sizes.append(np.full(len(centres[-1]), size, np.float32))
    return np.concatenate(centres), np.concatenate(sizes)


def mask_inputs(
    features: np.ndarray, pixels: np.ndarray, centre: np.ndarray, size: Any, mask: dict[str, Any]
) -> np.ndarray:
    """Inputs of a mask head, float32 [in, h*w]: coordinates first, then the features."""
    inputs = []
    if mask["coordinates"] == "relative":
        inputs.append((centre[:, None] - pixels) / size)
    elif mask["coordinates"] == "absolute":
        inputs.append(pixels / np.float32(512))
    if mask["use_features"]:
        inputs.append(features.reshape(len(features), -1).astype(np.float32))
    return np.concatenate(inputs)


def mask_head(params: np.ndarray, x: np.ndarray, mask: Mapping[str, Any]) -> np.ndarray:
    """Logits [h*w] of one mask: 1x1 convolutions with ReLU between them (section 3.1).

    `params` [P] holds the weights [out, in] of all layers and after them all biases.
    """
    depth, width = mask["mask_head_depth"], mask["mask_head_width"]
    ins, outs = [len(x)] + [width] * (depth - 1), [width] * (depth - 1) + [1]
    counts = [o * i for o, i in zip(outs, ins, strict=True)] + outs
    parts = np.split(params, np.cumsum(counts)[:-1])
    for layer in range(depth):
        weight, bias = parts[layer].reshape(outs[layer], ins[layer]), parts[depth + layer]
        x = weight @ (np.maximum(x, 0) if layer else x) + bias[:, None]
    return x[0]


def interpolate(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`x` [h, w] read at fractional rows [H] and columns [W], which lie in it: [H, W]."""
    for place in (columns, rows):  # across first, then down
        low = place.astype(np.intp)
        high = np.minimum(low + 1, x.shape[1] - 1)
        part = place - low
        x = (x[:, low] * (1 - part) + x[:, high] * part).T
    return x


def aligned_bilinear(x: np.ndarray, factor: int) -> np.ndarray:
    """`x` [h, w] enlarged to [factor*h, factor*w]: output j is read at (j - factor // 2) / factor.

    So cell i of any stride s lies on network pixel i * s + s // 2.
    """
    places = [np.arange(factor * side, dtype=np.float32) - factor // 2 for side in x.shape]
    rows, columns = (
        np.clip(p / np.float32(factor), 0, n - 1) for p, n in zip(places, x.shape, strict=True)
    )
    return interpolate(x, rows, columns)


def paste(x: np.ndarray, stride: int, net_size: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """The mask bool [H, W] at the size of the image, from probabilities [h, w] of the canvas."""
    places = []
    for cells, net, pixels in zip(x.shape, net_size, image_size, strict=True):
        # network pixel of each image pixel, half-pixel centres, in float32 throughout
        scale = np.float32(net) / np.float32(pixels)
        place = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        place = np.clip(place, 0, np.float32(net - 1))
        # mask cell of that; interpolating the small mask once equals enlarging it first
        places.append(np.clip((place - stride // 2) / np.float32(stride), 0, cells - 1))
    return interpolate(x.astype(np.float32), *places) > 0.5


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO run lengths, not compressed: down the columns, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    return {
        "size": list(mask.shape),
        "counts": np.diff(edges, prepend=0, append=flat.size).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outputs", metavar="detector_outputs.npz")
    parser.add_argument("-o", "--output", type=Path, default=Path("instances.json"))
    parser.add_argument("--index", type=int, default=0, help="which image of the batch")
    args = parser.parse_args()
    try:
        with np.load(args.outputs) as file:
            found = list(instances(dict(file), args.index))
    except ValueError as error:
        parser.error(str(error))
    for one in found:
        one["segmentation"] = runs(one.pop("mask"))
    args.output.write_text(json.dumps(found))
    print(f"{len(found)} instances -> {args.output}")


if __name__ == "__main__":
    main()
