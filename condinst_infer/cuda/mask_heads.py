"""Kernels after a `detector` graph: NMS, gathered rows, mask heads."""

from collections.abc import Mapping

import numpy as np

from condinst_infer.contract.metadata import Metadata
from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.download import HostCopy
from condinst_infer.cuda.stream import Stream

_WORD = 32  # cells


class GatheredRows:
    """Memory for `k` of an image's candidates and their mask heads."""

    def __init__(self, stream: Stream, n: int, k: int, params: int, kind: np.dtype) -> None:
        self.keep = stream.empty((n, k), np.int32)  # which candidates
        self.params = stream.empty((n, k, params), kind)
        self.centres = stream.empty((n, k, 2), np.float32)
        self.sizes = stream.empty((n, k), np.float32)

    @property
    def heads(self) -> list[DeviceArray]:
        """The inputs of `dynamic_mask_head` among the rows."""
        return [self.params, self.centres, self.sizes]

    @property
    def arrays(self) -> list[DeviceArray]:
        return [self.keep, *self.heads]


class DetectorTail:
    """From the outputs of a `detector` graph, `found`, to `masks` [N, K, H/s, W/s].

    Args:
        slots, size: images, and (height, width) of their canvas.
    """

    def __init__(
        self,
        metadata: Metadata,
        stream: Stream,
        slots: int,
        size: tuple[int, int],
        found: Mapping[str, DeviceArray],
    ) -> None:
        config, features = metadata.config, found["mask_features"]
        self._config, self._stream, self._found = config, stream, dict(found)
        self._n, self._k = slots, config.detect.max_detections
        first, levels = 0, []
        for stride, interest in zip(config.strides, config.heads.sizes_of_interest, strict=True):
            rows, columns = (-(-side // stride) for side in size)
            levels.append((first, columns, stride, interest))
            first += rows * columns
        self._levels = stream.array(np.array(levels, np.int32))
        self._kept = GatheredRows(stream, slots, self._k, config.num_params, features.dtype)
        height, width = (config.mask_factor * side for side in features.shape[2:])
        self.masks = stream.empty((slots, self._k, height, width), features.dtype)
        self._by_masks: _ByMasks | None = None
        if config.detect.nms == "mask":
            self._by_masks = _ByMasks(metadata, stream, slots, self._found)

    def run(self, report: HostCopy) -> None:
        """Fill `masks` and the boxes, scores, labels and counts of `report`."""
        reported = [report["boxes"], report["scores"], report["labels"]]
        count, detect = report["num_detections"], self._config.detect
        if self._by_masks is None:
            self._nms(self._kept.keep, count, self._k, detect.nms_iou)
            self._select(self._kept, count, reported, self._k, detect.score_root)
            self._mask_heads(self._kept, count, self.masks, {})
            return
        by, stream, masks = self._by_masks, self._stream, self.masks
        self._nms(by.best.keep, by.count, by.c, 1.0)
        self._select(by.best, by.count, by.rows, by.c, score_root=False)
        self._mask_heads(by.best, by.count, by.masks, {"factor": 1})
        by.run(self._kept.keep, report["scores"], count)
        # boxes and scores come from elsewhere
        rows = [*by.rows[:2], report["labels"]]
        self._select(self._kept, count, rows, self._k, score_root=False)
        self._mask_heads(self._kept, count, masks, {})
        stride, shape = self._config.mask.mask_stride, (masks.shape[2], masks.shape[3])
        launch = kernels.mask_extents(self._n, self._k, shape, stride=stride, dtype=masks.dtype)
        stream.launch(launch, [masks, count], [report["boxes"]])

    def _nms(self, keep: DeviceArray, count: DeviceArray, k: int, iou_threshold: float) -> None:
        inputs = [self._found[f"candidate_{name}"] for name in ("boxes", "scores", "labels")]
        runs, m = len(self._config.strides), inputs[1].shape[1]
        launch = kernels.class_nms(
            self._n, m, runs=runs, max_detections=k, iou_threshold=iou_threshold
        )
        self._stream.launch(launch, inputs, [keep, count])

    def _select(
        self,
        rows: GatheredRows,
        count: DeviceArray,
        values: list[DeviceArray],
        k: int,
        score_root: bool,
    ) -> None:
        """Gather `rows.keep` into the rest of `rows` and into `values`: boxes, scores, labels."""
        names = ("boxes", "scores", "labels", "locations")
        candidates = [self._found[f"candidate_{name}"] for name in names]
        params_map = self._found["params_map"]
        launch = kernels.select(
            self._n,
            k=k,
            m=candidates[1].shape[1],
            p=params_map.shape[1],
            a=params_map.shape[2],
            levels=len(self._config.strides),
            score_root=score_root,
            dtype=params_map.dtype,
        )
        inputs = [rows.keep, count, *candidates, params_map, self._levels]
        self._stream.launch(launch, inputs, [*values, *rows.heads])

    def _mask_heads(
        self, rows: GatheredRows, count: DeviceArray, masks: DeviceArray, changes: Mapping[str, int]
    ) -> None:
        features = self._found["mask_features"]
        (n, k), (h, w) = masks.shape[:2], features.shape[2:]
        settings = {**self._config.mask_head_settings, **changes}
        launch = kernels.dynamic_mask_head(n, k, h, w, **settings, dtype=features.dtype)
        self._stream.launch(launch, [features, *rows.heads, count], [masks])

    def close(self) -> None:
        """Free everything but `masks`."""
        self._stream.free(self._levels, *self._kept.arrays)
        if self._by_masks is not None:
            self._by_masks.close()


class _ByMasks:
    """Memory for mask NMS, and its kernels.

    The best candidates are found by class_nms too: boxes without an area overlap nothing.
    """

    def __init__(
        self, metadata: Metadata, stream: Stream, n: int, found: dict[str, DeviceArray]
    ) -> None:
        config, features = metadata.config, found["mask_features"]
        self._config, self._stream, self.c = config, stream, config.mask_candidates
        c, m = self.c, found["candidate_scores"].shape[1]
        height, width = features.shape[2:]
        self._words = -(-height * width // _WORD)
        self._boxes = found["candidate_boxes"] = stream.empty((n, m, 4), np.float32)
        stream.fill(self._boxes, 0)
        self.best = GatheredRows(stream, n, c, config.num_params, features.dtype)
        self.count = stream.empty((n,), np.int32)
        room = max(c, config.detect.max_detections)
        self.rows = [  # of the best: boxes, of no use, scores, labels
            stream.empty((n, room, 4), np.float32),
            stream.empty((n, room), np.float32),
            stream.empty((n, room), np.int32),
        ]
        self.masks = stream.empty((n, c, height, width), features.dtype)
        self._bits = stream.empty((n, c, self._words), np.uint32)
        self._areas = stream.empty((n, c), np.int32)
        self._ious = stream.empty((n, c, c), np.float32)

    def run(self, keep: DeviceArray, scores: DeviceArray, count: DeviceArray) -> None:
        """Fill `keep` [N, K] with candidates of the graph, and reported scores [N, K]."""
        stream, detect, n = self._stream, self._config.detect, self.masks.shape[0]
        cells = self.masks.shape[2] * self.masks.shape[3]
        launch = kernels.mask_bits(n, self.c, cells, dtype=self.masks.dtype)
        stream.launch(launch, [self.masks], [self._bits, self._areas])
        launch = kernels.mask_ious(n, self.c, self._words)
        stream.launch(launch, [self._bits, self._areas, self.rows[2]], [self._ious])
        launch = kernels.mask_nms(
            n,
            self.c,
            k=keep.shape[1],
            kind=detect.mask_nms,
            iou_threshold=detect.nms_iou,
            score_threshold=detect.score_threshold,
            score_root=detect.score_root,
        )
        inputs = [self._ious, self.rows[1], self._areas, self.best.keep]
        stream.launch(launch, inputs, [keep, scores, count])

    def close(self) -> None:
        """Free all of it."""
        arrays = [self.masks, self._bits, self._areas, self._ious, self._boxes, self.count]
        self._stream.free(*self.rows, *self.best.arrays, *arrays)
