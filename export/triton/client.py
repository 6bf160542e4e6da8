"""Sends image files to a Triton that runs a model of ours, and prints what is in them.

pip install 'tritonclient[http]' pycocotools
python client.py nuclei photo.jpg --url localhost:8000
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tritonclient.http as triton
from pycocotools import mask as coco


class Found(NamedTuple):
    """K instances, best score first."""

    boxes: np.ndarray  # float32 [K, 4], x1 y1 x2 y2 in pixels of the image
    scores: np.ndarray  # float32 [K]
    labels: np.ndarray  # int32 [K], class index
    names: list[str]  # K class names
    masks: np.ndarray  # bool [K, H, W], of the image's size


def find(client: Any, model: str, image: bytes | np.ndarray) -> Found:
    """The instances of one image.

    Args:
        client: a tritonclient.http.InferenceServerClient.
        model: name of the model that takes images.
        image: the bytes of an image file, or BGR uint8 [H, W, 3].

    Raises:
        tritonclient.utils.InferenceServerException: Triton can't be reached, or refuses the image.
    """
    if isinstance(image, bytes):
        sent = triton.InferInput("image", [1], "BYTES")
        sent.set_data_from_numpy(np.array([image], dtype=object))
    else:
        sent = triton.InferInput("pixels", list(image.shape), "UINT8")
        sent.set_data_from_numpy(image)
    wanted = [triton.InferRequestedOutput(name) for name in Found._fields]
    got = client.infer(model, [sent], outputs=wanted)
    boxes, scores, labels, names, masks = map(got.as_numpy, Found._fields)
    dense = [coco.decode(json.loads(rle)).astype(bool) for rle in masks]
    return Found(boxes, scores, labels, [n.decode() for n in names], np.array(dense, dtype=bool))


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints what Triton finds in images.")
    parser.add_argument("model", help="name of the model that takes images")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--url", default="localhost:8000", help="(default: %(default)s)")
    args = parser.parse_args()
    with triton.InferenceServerClient(args.url) as client:
        for path in args.images:
            found = find(client, args.model, path.read_bytes())
            for name, score, box, mask in zip(
                found.names, found.scores, found.boxes, found.masks, strict=True
            ):
                corners = " ".join(f"{side:.1f}" for side in box)
                print(f"{path}: {name} {score:.3f} at {corners}, {mask.sum()} pixels")


if __name__ == "__main__":
    main()
