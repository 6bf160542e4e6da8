"""Cases of the panoptic merge as it is run: masks pasted, merged and copied to the host."""

from typing import Any

import numpy as np

from condinst_infer.config.model import PanopticConfig
from condinst_infer.cuda import kernels
from condinst_infer.cuda.download import HostCopy
from condinst_infer.cuda.panoptic_merge import PanopticMerge
from condinst_infer.cuda.stream import Stream
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.profiling.gpu.cases import FLOATS, Arrays, KernelCase
from condinst_infer.profiling.gpu.seeded import blobs, regions

Size = tuple[int, int]  # (height, width)

RULES: dict[str, Any] = {"overlap_threshold": 0.4, "stuff_area_limit": 500}
_WRONG = 5e-5  # share of the pixels, on the edge of a mask or between two classes


def panoptic_merge_cases() -> list[KernelCase]:
    sizes = [
        (4, 7, (16, 24), (57, 91), (75, 121), True),
        (30, 12, (128, 184), (512, 731), (480, 640), False),
        (100, 54, (104, 184), (414, 736), (1080, 1920), False),
    ]
    return [_merge_case(*size, dtype) for size in sizes for dtype in FLOATS]


def _merge_case(
    k: int, classes: int, shape: Size, net_size: Size, image_size: Size, small: bool, dtype: Any
) -> KernelCase:
    sizes: dict[str, Any] = {"net_size": net_size, "image_size": image_size}

    def inputs() -> Arrays:
        return {"masks": blobs(k, k, shape), "semantic": regions(k, classes, shape)}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        scene = MergeScene(stream, *(array.astype(dtype) for array in inputs.values()), **sizes)
        scene.merge()
        return {"owners": scene.owners()}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer.ops.panoptic import panoptic_merge

        device = "cuda" if torch.cuda.is_available() else "cpu"
        tensors = [torch.from_numpy(array).to(device) for array in inputs.values()]
        owners = panoptic_merge(*tensors, stride=4, **sizes, **RULES)
        return {"owners": owners.cpu().numpy().astype(np.uint16)}

    return KernelCase(
        name=f"{k} masks and {classes} classes {shape} to {image_size}",
        inputs=inputs,
        run=run,
        expected=expected,
        limit=max(3, round(_WRONG * image_size[0] * image_size[1])),
        dtype=dtype,
        small=small,
        stored=image_size != (1080, 1920),
        gpu_twin=not small,
    )


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
