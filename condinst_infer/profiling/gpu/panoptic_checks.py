"""Checks of the panoptic merge's kernels against torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from condinst_infer.config.model import PanopticConfig
from condinst_infer.cuda import kernels
from condinst_infer.cuda.download import HostCopy
from condinst_infer.cuda.driver import Stream
from condinst_infer.cuda.panoptic_merge import PanopticMerge
from condinst_infer.ops.panoptic import panoptic_merge
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.profiling.gpu.checks import Check
from condinst_infer.profiling.gpu.scenes import mask_scene, stuff_scene

RULES: dict[str, Any] = {"overlap_threshold": 0.4, "stuff_area_limit": 500}


def panoptic_checks(stream: Stream, small: bool) -> Iterator[Check]:
    cases = [(4, 7, (16, 24), (57, 91), (75, 121))]
    if not small:
        cases.append((100, 54, (200, 272), (800, 1067), (480, 640)))
        cases.append((30, 12, (128, 184), (512, 731), (1080, 1542)))
    for k, classes, shape, net_size, image_size in cases:
        for dtype in (np.float32, np.float16):
            masks = mask_scene(k, shape, image_size).astype(dtype)
            semantic = stuff_scene(cells=shape, classes=classes).astype(dtype)
            sizes = {"net_size": net_size, "image_size": image_size}
            made = MergeScene(stream, masks, semantic, **sizes)
            made.merge()
            found = made.owners()
            tensors = torch.from_numpy(masks), torch.from_numpy(semantic)
            expected = panoptic_merge(*tensors, stride=4, **sizes, **RULES).numpy()
            case = f"{k} masks and {classes} classes {shape} to {image_size}, {np.dtype(dtype)}"
            # pixels on the edge of a mask or between two classes may go either way
            yield Check("panoptic", case, int((found != expected).sum()), 3)


class MergeScene:
    """Masks pasted on the device, and logits, ready to be merged at the image's size.

    Args:
        masks: probabilities [K, h, w], float16 or float32.
        semantic: logits [C, h, w].
    """

    def __init__(
        self,
        stream: Stream,
        masks: np.ndarray,
        semantic: np.ndarray,
        *,
        net_size: Any,
        image_size: Any,
    ) -> None:
        k, capacity = len(masks), len(masks) * image_size[0] * -(-image_size[1] // 32)
        self._stream, self._report = stream, HostCopy(stream, 1, k, capacity)
        self._placed = PlacedImage(np.zeros((*image_size, 3), np.uint8), net_size, net_size)
        slots = {
            "num_detections": np.array([k], np.int32),
            "boxes": np.tile(np.array([0, 0, 99, 99], np.float32), (1, k, 1)),
            "scores": np.ones((1, k), np.float32),
            "used": np.zeros(1, np.int32),
        }
        for name, value in slots.items():
            stream.upload(self._report[name], value)
        sizes: dict[str, Any] = {
            "k": k, "shape": masks.shape[1:], "stride": 4, "net_size": net_size,
            "image_size": image_size, "dtype": masks.dtype,
        }  # fmt: skip
        self.masks, self.semantic = stream.array(masks), stream.array(semantic[None])
        crops, used = self._report["crops"][0], self._report["used"]
        boxes = kernels.mask_boxes(**sizes, capacity=capacity)
        stream.launch(boxes, [self.masks, self._report["num_detections"]], [crops, used])
        stream.launch(kernels.paste(**sizes), [self.masks, crops], [self._report["bits"]])
        self.words = int(stream.numpy(used)[0])  # of 32 pixels, in all crops
        self._merging = PanopticMerge(stream, 1, check_boxes=True)
        self._merging.make_room([self._placed])

    def merge(self) -> None:
        """Put the merge and the copy of its owners on the stream."""
        settings = PanopticConfig(**RULES)
        self._merging.run([self._placed], self._report, self.semantic, settings)

    def owners(self) -> np.ndarray:
        """The owner of every pixel, of the last merge."""
        self._stream.synchronize()
        return self._merging.contents([self._placed])[0]
