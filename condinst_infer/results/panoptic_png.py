"""Segment ids as COCO's panoptic PNG."""

from pathlib import Path
from typing import Any

from condinst_infer.system.outputs import atomic_file


def write_id_png(path: Path, ids: Any) -> None:
    """Write segment ids, int [H, W], as COCO's panoptic PNG does: id = R + 256 G + 65536 B.

    Raises:
        InputError: the file can't be written.
    """
    import cv2
    import numpy as np

    colours = np.stack([ids >> shift & 255 for shift in (16, 8, 0)], -1)  # B, G, R
    with atomic_file(path) as part:
        part.write_bytes(cv2.imencode(".png", colours.astype(np.uint8))[1].tobytes())
