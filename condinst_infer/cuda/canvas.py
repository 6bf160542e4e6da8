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
from condinst_infer.cuda.mask_heads import DetectorTail
from condinst_infer.cuda.panoptic_merge import PanopticMerge
from condinst_infer.cuda.replay import Replay
from condinst_infer.cuda.stream import Stream
from condinst_infer.cuda.upload import FrameUpload
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

    def __init__(self, image_sizes: DeviceArray, stream: Stream, session: "DeviceSession") -> None:
        self.image_sizes = image_sizes  # int32 [N, 2], the network's input
        self.uses = 0
        self.whole = Replay(stream, session)  # everything after the resizing
        self.network = Replay(stream, session)  # alone

    def close(self, stream: Stream) -> None:
        """Free it, once the stream has done all that was put on it."""
        for replay in (self.whole, self.network):
            replay.close()
        stream.free(self.image_sizes)


class Canvas:
    """Buffers for `slots` images of `size`, and the work between frames and masks.

    What the host wants lies in one piece of memory, the report, the packed masks last, so that
    one copy brings it. From the third batch of the same sizes on, everything after the resizing
    is one CUDA graph.
    """

    def __init__(self, session: DeviceSession, stream: Stream, slots: int, size: Size) -> None:
        self._session, self._stream = session, stream
        self._config, self._slots, self._size = session.metadata.config, slots, size
        self._plans: OrderedDict[tuple[Any, ...], _Plan] = OrderedDict()
        self._generation = stream.workspace.generation  # that the plans know
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
        self._upload = FrameUpload(stream)
        self._host_copy = HostCopy(stream, slots, self._config.detect.max_detections, 0)
        self._panoptic_merge = PanopticMerge(
            stream, slots, check_boxes=self._config.detect.nms == "box"
        )
        self._context = session.context()

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

        def work() -> None:
            self._work(plan, batch, panoptic)

        plan.whole.enqueue(work)
        used = self._host_copy.wait()
        self._generation = self._stream.workspace.generation
        plan.uses += 1
        if plan.uses == 2:
            plan.whole.record(work)
        return used

    def network(self, batch: Sequence[PlacedImage]) -> None:
        """See `CudaRunner.network`."""
        plan = self._plan(batch)

        def work() -> None:
            self._run_network(plan)

        plan.network.enqueue(work)
        self._stream.synchronize()
        self._generation = self._stream.workspace.generation
        plan.network.record(work)

    def close(self) -> None:
        """Free everything but the stream."""
        self._forget_plans()
        self._host_copy.close()
        self._panoptic_merge.close()
        if self._detector_tail is not None:
            self._detector_tail.close()
        self._upload.close()
        self._stream.free(self._images, *self._outputs.values())
        self._session.release(self._context)

    def abandon(self) -> None:
        """Free what is not in the stream's memory, which is to be given back as a whole."""
        for plan in self._plans.values():
            plan.whole.close()
            plan.network.close()
        self._plans.clear()
        self._session.release(self._context)

    def _plan(self, batch: Sequence[PlacedImage], panoptic: PanopticConfig | None = None) -> _Plan:
        if self._generation != self._stream.workspace.generation:
            self._forget_plans()  # their graphs hold an address that is no more
        key = (*((placed.net_size, placed.image.shape[:2]) for placed in batch), panoptic)
        if key not in self._plans:
            if len(self._plans) == _PLANS:
                self._plans.popitem(last=False)[1].close(self._stream)
            sizes = [placed.net_size for placed in batch]
            sizes += [self._size] * (self._slots - len(batch))
            array = self._stream.array(np.array(sizes, np.int32))
            self._plans[key] = _Plan(array, self._stream, self._session)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _forget_plans(self) -> None:
        while self._plans:
            self._plans.popitem()[1].close(self._stream)

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
                frame, pitch = self._upload.run(placed.image), 3 * width
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
