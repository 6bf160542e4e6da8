"""Work of the GPU on images of one padded size: buffers, order of the steps, CUDA graphs."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from condinst_infer.config.model import PanopticConfig, Size
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import contract_outputs, output_shapes
from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray, device_array
from condinst_infer.cuda.download import REPORTED, HostCopy, expected_words
from condinst_infer.cuda.driver import Graph, Stream
from condinst_infer.cuda.mask_heads import DetectorTail
from condinst_infer.cuda.panoptic_merge import PanopticMerge
from condinst_infer.processing.batching import is_device_array
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.postprocess import BatchOutputs

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
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._images = stream.empty((slots, *size, 3), np.uint8)
        stream.fill(self._images, 0)
        self._outputs: dict[str, DeviceArray] = {}
        shapes = output_shapes(session.metadata, slots, size)
        specs = contract_outputs(session.metadata)
        self._names = tuple(specs)  # of what the network puts out
        for name, spec in specs.items():
            if name not in REPORTED:
                self._outputs[name] = stream.empty(shapes[name], spec.dtype)
        self._detector_tail = None
        if session.metadata.graph == "detector":
            self._detector_tail = DetectorTail(session.metadata, stream, slots, size, self._outputs)
            self._outputs["masks"] = self._detector_tail.masks
        self._frame = stream.empty((1,), np.uint8)
        self._host_copy = HostCopy(stream, slots, self._config.detect.max_detections, 0)
        self._panoptic_merge = PanopticMerge(
            stream, slots, check_boxes=self._config.detect.nms == "box"
        )

    def run(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None
    ) -> BatchOutputs:
        """See `CudaRunner.run`."""
        if panoptic is not None and not self._panoptic_merge.has_room(batch):
            self._forget_plans()
            self._panoptic_merge.make_room(batch)
        most = self._config.detect.max_detections
        self._make_room(sum(expected_words(most, placed.image.shape[:2]) for placed in batch))
        self._resize(batch)
        used = self._run_after_resize(batch, panoptic)
        if used > self._host_copy.capacity:
            self._make_room(used)
            used = self._run_after_resize(batch, panoptic)
        names = ("boxes", "scores", "labels")
        arrays = {name: self._host_copy[name] for name in names} | {"masks": self._outputs["masks"]}
        on_device = [{name: array[i] for name, array in arrays.items()} for i in range(len(batch))]
        owners = None if panoptic is None else self._panoptic_merge.contents(batch)
        return BatchOutputs(*self._host_copy.contents(used, len(batch)), on_device, owners)

    def _run_after_resize(
        self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None
    ) -> int:
        """Do everything after the resizing; how many words the masks need."""
        plan = self._plan(batch, panoptic)
        if plan.graph is not None:
            plan.graph.launch()
        else:
            self._work(plan, batch, panoptic)
        used = self._host_copy.wait()
        plan.uses += 1
        if plan.uses == 2 and self._session.capturable:
            plan.graph = self._stream.graph(lambda: self._work(plan, batch, panoptic))
        return used

    def network(self, batch: Sequence[PlacedImage]) -> None:
        """See `CudaRunner.network`."""
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
        self._host_copy.close()
        self._panoptic_merge.close()
        if self._detector_tail is not None:
            self._detector_tail.close()
        self._stream.free(self._images, self._frame, *self._outputs.values())
        self._session.release(self._context)

    def _plan(self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None) -> _Plan:
        key = (*((placed.net_size, placed.image.shape[:2]) for placed in batch), panoptic)
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
        if words > self._host_copy.capacity:
            self._forget_plans()
            self._host_copy.close()
            most = self._config.detect.max_detections
            self._host_copy = HostCopy(self._stream, self._slots, most, words)

    def _resize(self, batch: Sequence[PlacedImage]) -> None:
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

    def _work(
        self, plan: _Plan, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None
    ) -> None:
        """From resized images to a report on its way to the host."""
        stream, report = self._stream, self._host_copy
        self._run_network(plan)
        if self._detector_tail is not None:
            self._detector_tail.run(report)
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
        if panoptic is not None:
            self._panoptic_merge.run(batch, report, self._outputs["semantic"], panoptic)
        report.fetch()

    def _run_network(self, plan: _Plan) -> None:
        feeds = {"images": self._images, "image_sizes": plan.image_sizes}
        outputs = {
            name: self._outputs[name] if name in self._outputs else self._host_copy[name]
            for name in self._names
        }
        self._context.enqueue(feeds, outputs, self._stream)
