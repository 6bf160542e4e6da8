"""What the GPU does with the images of one padded size: buffers, the order of the work, a graph."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from condinst_infer.engines import kernels
from condinst_infer.engines.arrays import DeviceArray, device_array, is_device_array
from condinst_infer.engines.crops import words_expected
from condinst_infer.engines.cuda import Graph, Stream
from condinst_infer.engines.report import REPORTED, Report
from condinst_infer.metadata import Metadata
from condinst_infer.postprocess import Found
from condinst_infer.preprocess import Placed
from condinst_infer.session import contract_outputs, output_shapes

Size = tuple[int, int]  # (height, width)

_PLANS = 32  # kept at once; each may hold a graph


class DeviceSession(Protocol):
    """An engine that reads and writes device memory.

    A context is what one canvas needs of it; `enqueue(feeds, outputs, stream)` of a context puts
    the network on a stream. `capturable` says whether that may become part of a CUDA graph.
    """

    metadata: Metadata
    capturable: bool

    def context(self) -> Any: ...
    def release(self, context: Any) -> None: ...
    def close(self) -> None: ...


class _Plan:
    """The sizes within one batch: with the canvas they decide everything but the pixels."""

    def __init__(self, image_sizes: DeviceArray) -> None:
        self.image_sizes = image_sizes  # int32 [N, 2], the network's input
        self.uses = 0
        self.graph: Graph | None = None
        self.network: Graph | None = None  # alone


class Canvas:
    """Buffers for `slots` images of `size`, and the work between frames and masks.

    What the host wants lies in one piece of memory, the report, the packed masks last, so that
    one copy brings it. From the third batch of the same sizes on, everything after the resizing
    is one CUDA graph.
    """

    def __init__(self, session: DeviceSession, stream: Stream, slots: int, size: Size) -> None:
        self._session, self._stream = session, stream
        self._config, self._slots, self._size = session.metadata.config, slots, size
        self._context = session.context()
        self._plans: OrderedDict[tuple[tuple[Size, Size], ...], _Plan] = OrderedDict()
        self._images = stream.empty((slots, *size, 3), np.uint8)
        stream.fill(self._images, 0)
        self._outputs: dict[str, DeviceArray] = {}
        shapes = output_shapes(session.metadata, slots, size)
        specs = contract_outputs(session.metadata)
        self._names = tuple(specs)  # of what the network puts out
        for name, spec in specs.items():
            if name not in REPORTED:
                self._outputs[name] = stream.empty(shapes[name], spec.dtype)
        self._heads = None
        if session.metadata.graph == "detector":
            self._heads = _Heads(session.metadata, stream, slots, size, self._outputs)
            self._outputs["masks"] = self._heads.masks
        self._frame = stream.empty((1,), np.uint8)
        self._report = Report(stream, slots, self._config.detect.max_detections, 0)

    def run(self, batch: Sequence[Placed]) -> Found:
        """See `DeviceRunner.run`."""
        most = self._config.detect.max_detections
        self._make_room(sum(words_expected(most, placed.image.shape[:2]) for placed in batch))
        self._resize(batch)
        used = self._done(batch)
        if used > self._report.capacity:
            self._make_room(used)
            used = self._done(batch)
        names = ("boxes", "scores", "labels")
        arrays = {name: self._report[name] for name in names} | {"masks": self._outputs["masks"]}
        on_device = [{name: array[i] for name, array in arrays.items()} for i in range(len(batch))]
        return Found(*self._report.contents(used, len(batch)), on_device)

    def _done(self, batch: Sequence[Placed]) -> int:
        """Do everything after the resizing; how many words the masks need."""
        plan = self._plan(batch)
        if plan.graph is not None:
            plan.graph.launch()
        else:
            self._work(plan, batch)
        used = self._report.fetched()
        plan.uses += 1
        if plan.uses == 2 and self._session.capturable:
            plan.graph = self._stream.graph(lambda: self._work(plan, batch))
        return used

    def network(self, batch: Sequence[Placed]) -> None:
        """See `DeviceRunner.network`."""
        plan = self._plan(batch)
        if plan.network is not None:
            plan.network.launch()
        else:
            self._run_network(plan)
        self._stream.synchronize()
        if plan.network is None and self._session.capturable:
            plan.network = self._stream.graph(lambda: self._run_network(plan))

    def close(self) -> None:
        """Free everything but the stream."""
        self._forget_plans()
        self._report.close()
        if self._heads is not None:
            self._heads.close()
        self._stream.free(self._images, self._frame, *self._outputs.values())
        self._session.release(self._context)

    def _plan(self, batch: Sequence[Placed]) -> _Plan:
        key = tuple((placed.net_size, placed.image.shape[:2]) for placed in batch)
        if key not in self._plans:
            if len(self._plans) == _PLANS:
                self._forget(self._plans.popitem(last=False)[1])
            sizes = [placed.net_size for placed in batch]
            sizes += [self._size] * (self._slots - len(batch))
            self._plans[key] = _Plan(self._stream.array(np.array(sizes, np.int32)))
        self._plans.move_to_end(key)
        return self._plans[key]

    def _forget(self, plan: _Plan) -> None:
        for graph in (plan.graph, plan.network):
            if graph is not None:
                graph.close()
        self._stream.free(plan.image_sizes)

    def _forget_plans(self) -> None:
        while self._plans:
            self._forget(self._plans.popitem()[1])

    def _make_room(self, words: int) -> None:
        """At least so many words for masks; what graphs know of the old place is forgotten."""
        if words > self._report.capacity:
            self._forget_plans()
            self._report.close()
            most = self._config.detect.max_detections
            self._report = Report(self._stream, self._slots, most, words)

    def _resize(self, batch: Sequence[Placed]) -> None:
        """Bring the frames to the device, one after the other, and onto the network's input."""
        for i, placed in enumerate(batch):
            height, width = placed.image.shape[:2]
            if is_device_array(placed.image):
                frame, pitch = device_array(placed.image, "the image")
                self._stream.wait_for(placed.image)
            else:
                if self._frame.nbytes < placed.image.nbytes:
                    self._stream.free(self._frame)
                    self._frame = self._stream.empty((placed.image.nbytes,), np.uint8)
                frame, pitch = self._frame.view(placed.image.shape), 3 * width
                self._stream.upload(frame, np.ascontiguousarray(placed.image))
            launch = kernels.preprocess(
                pitch=pitch, size=(height, width), net_size=placed.net_size, canvas=self._size
            )
            self._stream.launch(launch, [frame], [self._images[i]])

    def _work(self, plan: _Plan, batch: Sequence[Placed]) -> None:
        """From resized images to a report on its way to the host."""
        stream, report = self._stream, self._report
        self._run_network(plan)
        if self._heads is not None:
            self._heads.run(report)
        stream.fill(report["used"], 0)
        masks = self._outputs["masks"]
        for i, placed in enumerate(batch):
            sizes = {
                "k": masks.shape[1],
                "shape": masks.shape[2:],
                "stride": self._config.mask.mask_stride,
                "net_size": placed.net_size,
                "image_size": placed.image.shape[:2],
                "dtype": masks.dtype,
            }
            boxes = kernels.mask_boxes(**sizes, capacity=report.capacity)
            crops = report["crops"][i]
            stream.launch(boxes, [masks[i], report["num_detections"][i]], [crops, report["used"]])
            stream.launch(kernels.paste(**sizes), [masks[i], crops], [report["bits"]])
        report.fetch()

    def _run_network(self, plan: _Plan) -> None:
        feeds = {"images": self._images, "image_sizes": plan.image_sizes}
        outputs = {
            name: self._outputs[name] if name in self._outputs else self._report[name]
            for name in self._names
        }
        self._context.enqueue(feeds, outputs, self._stream)


class _Heads:
    """What our kernels do after a `detector` graph: NMS, the kept rows, the mask heads."""

    def __init__(
        self,
        metadata: Metadata,
        stream: Stream,
        slots: int,
        size: Size,
        candidates: Mapping[str, DeviceArray],
    ) -> None:
        self._config, self._stream, self._candidates = metadata.config, stream, dict(candidates)
        config, features = metadata.config, candidates["mask_features"]
        kept, kind = (slots, config.detect.max_detections), features.dtype
        first, levels = 0, []
        for stride, interest in zip(config.strides, config.heads.sizes_of_interest, strict=True):
            rows, columns = (-(-side // stride) for side in size)
            levels.append((first, columns, stride, interest))
            first += rows * columns
        self._levels = stream.array(np.array(levels, np.int32))
        self._keep = stream.empty(kept, np.int32)
        self._params = stream.empty((*kept, config.num_params), kind)
        self._centres = stream.empty((*kept, 2), np.float32)
        self._sizes = stream.empty(kept, np.float32)
        height, width = (config.mask_factor * side for side in features.shape[2:])
        self.masks = stream.empty((*kept, height, width), kind)

    def run(self, report: "Report") -> None:
        """Fill `masks` and the boxes, scores, labels and counts of `report`."""
        config, found, stream = self._config, self._candidates, self._stream
        boxes, scores, labels, locations = (
            found[f"candidate_{name}"] for name in ("boxes", "scores", "labels", "locations")
        )
        params_map, features = found["params_map"], found["mask_features"]
        (n, k), m = self._keep.shape, scores.shape[1]
        nms = kernels.class_nms(
            n, m, runs=len(config.strides), max_detections=k, iou_threshold=config.detect.nms_iou
        )
        count = report["num_detections"]
        stream.launch(nms, [boxes, scores, labels], [self._keep, count])
        select = kernels.select(
            n,
            k=k,
            m=m,
            p=params_map.shape[1],
            a=params_map.shape[2],
            levels=len(config.strides),
            score_root=config.detect.score_root,
            dtype=params_map.dtype,
        )
        rows = [boxes, scores, labels, locations, params_map, self._levels]
        kept = [report["boxes"], report["scores"], report["labels"]]
        places = [self._params, self._centres, self._sizes]
        stream.launch(select, [self._keep, count, *rows], [*kept, *places])
        heads = kernels.dynamic_mask_head(
            n, k, *features.shape[2:], **config.mask_head_settings, dtype=features.dtype
        )
        stream.launch(heads, [features, *places, count], [self.masks])

    def close(self) -> None:
        self._stream.free(self._levels, self._keep, self._params, self._centres, self._sizes)
