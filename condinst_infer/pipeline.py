"""Photographs in, Instances out: the stages around one session."""

import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from condinst_infer.config.model import (
    MAX_BATCH,
    MAX_PIXELS,
    RECONNECT,
    CondInstConfig,
    PanopticConfig,
)
from condinst_infer.config.validation import (
    DeviceName,
    check_threads,
    check_whole,
    check_workers,
)
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.model_file import model_path
from condinst_infer.errors import InputError, ModelFileError
from condinst_infer.processing.batching import by_canvas, is_one, until_failure
from condinst_infer.processing.geometry import PlacedImage, place_image
from condinst_infer.processing.options import (
    Classes,
    Filter,
    Thresholds,
    filter_for,
    panoptic_settings,
)
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.processing.preprocess import (
    ChannelOrder,
    ImageSource,
    check_channel_order,
)
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.runner import CpuRunner, Runner, open_model
from condinst_infer.system.ordered_map import flat, groups, in_order
from condinst_infer.system.paths import is_file

if TYPE_CHECKING:
    from condinst_infer.contract.session import Session
    from condinst_infer.results.panoptic import PanopticSegmentation
    from condinst_infer.video.sources import StreamSource
    from condinst_infer.video.stream import FrameStream

Result = TypeVar("Result")
# outputs of a batch, the index of the image and the image -> its result
ToResult = Callable[[BatchOutputs, int, PlacedImage], Result]


def load(
    path: str | os.PathLike[str],
    *,
    device: DeviceName | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
    max_batch: int = MAX_BATCH,
) -> "Pipeline":
    """Load the pipeline around a model file.

    Args:
        path: .onnx (ONNX Runtime or OpenVINO), .engine (TensorRT) or .safetensors (PyTorch); or
            "nuclei", the model that ships, unless a path of that name exists.
        device: "cpu", "cuda", "cuda:1" for another GPU, or a torch.device of these; None is the
            CPU, and the GPU for an .engine. On "cuda" our kernels do what follows the detector
            of an .onnx, which is cut there when it is loaded, and of a .safetensors in PyTorch.
        threads: CPU threads of one call, at least 1; None shares all cores between `workers`.
        runtime: of an .onnx file on the CPU, "onnxruntime" or "openvino"; None is the first.
        precision: "fp32", "bf16" or "int8", in OpenVINO only; None is the file's own.
        workers: calls that will run at the same time, as in `map`; more than these are safe.
        max_pixels: larger images are rejected before they are decoded.
        max_batch: images a file of dynamic batch is given at once; more cost memory.

    Raises:
        ConfigError: an option out of range.
        ModelFileError, CheckpointError: missing, not ours, or damaged.
        SessionError: this file can't be run here; the text says what can.
    """
    arguments = {  # with which a copy of the pipeline is loaded
        "device": None if device is None else str(device),
        "threads": threads,
        "runtime": runtime,
        "precision": precision,
        "workers": workers,
        "max_pixels": max_pixels,
        "max_batch": max_batch,
    }
    check_threads(threads)
    check_workers(workers)
    if threads is None and workers > 1:
        from condinst_infer.system.hardware import usable_cores

        threads = max(1, usable_cores() // workers)
    path = model_path(path)
    runner = open_model(
        path, device, threads, runtime=runtime, precision=precision, workers=workers
    )
    pipeline = Pipeline(runner, max_pixels=max_pixels, max_batch=max_batch)
    pipeline._load_arguments = arguments | {"path": path.absolute()}
    return pipeline


def _load_again(arguments: dict[str, Any]) -> "Pipeline":
    """The pipeline that `load` gave for these arguments, in another process.

    Raises:
        ModelFileError: the file has gone.
    """
    path: Path = arguments["path"]
    if not is_file(path, ModelFileError):
        raise ModelFileError(
            f"{path}, the file of a pickled pipeline, does not exist here or is not a file. "
            "Load it from where it is now: condinst_infer.load(PATH)"
        )
    return load(**arguments)


class Pipeline:
    """Finds instances in images with one loaded model.

    Calls from several threads are safe where the session's `run` is: ONNX Runtime's is,
    other sessions say so in their docstring. A pipeline itself keeps nothing between calls.

    A pipeline that `load` made can be pickled and copied: the other process, or the copy, opens
    the file again with the same options. Start processes with spawn or forkserver: the threads of
    a runtime don't survive a fork.

    Args:
        session: a loaded model file, or a runner around one; the pipeline owns it from now on.
        max_pixels: larger images are rejected before they are decoded.
        max_batch: images a file of dynamic batch is given at once.
    """

    def __init__(
        self,
        session: "Session | Runner",
        *,
        max_pixels: int = MAX_PIXELS,
        max_batch: int = MAX_BATCH,
    ) -> None:
        check_whole(max_pixels=max_pixels, max_batch=max_batch)
        self._runner = session if isinstance(session, Runner) else CpuRunner(session)
        self._max_pixels, self._max_batch = max_pixels, max_batch
        self._load_arguments: dict[str, Any] | None = None  # of `load`; the path is absolute

    def __repr__(self) -> str:
        return f"<Pipeline of {self._runner.session!r}>"

    def __reduce__(self) -> tuple[Callable[..., "Pipeline"], tuple[dict[str, Any]]]:
        if self._load_arguments is None:
            raise TypeError(  # as Python does for what can't be pickled
                "a pipeline around a session made by hand can't be pickled or copied; make it "
                "with condinst_infer.load(PATH), which a copy can do again."
            )
        return _load_again, (self._load_arguments,)

    @property
    def metadata(self) -> Metadata:
        """Metadata of the model file."""
        return self._runner.metadata

    @property
    def config(self) -> CondInstConfig:
        """The model's configuration."""
        return self.metadata.config

    @overload
    def __call__(
        self,
        source: ImageSource,
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> Instances: ...

    @overload
    def __call__(
        self,
        source: Iterable[ImageSource],
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> list[Instances]: ...

    def __call__(
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> Instances | list[Instances]:
        """The instances of one image, or a list with those of each.

        Images of a list are batched only with others of the same padded size, so each result is
        that of a call with this image alone.

        Args:
            source: one image, or an iterable of images. An image is a path; the bytes of an image
                file; an object with `read()`, which is read from where it stands to its end and
                left open; a PIL image; a uint8 array [H, W, 3], [H, W, 4] with alpha, or grey
                [H, W] or [H, W, 1]; or a uint8 tensor of PyTorch, these or [3, H, W]. An array
                [N, H, W, 3] is N images. On a GPU also an array [H, W, 3] in its memory (PyTorch,
                CuPy, PyCUDA), which is not copied unless it is RGB.
            channel_order: of arrays and tensors, "bgr" or "rgb"; paths, bytes, file objects and
                PIL images know theirs. The `image` of a result is BGR.
            score_threshold: lowest reported score, 0 to 1; None keeps all the model reports.
            max_detections: most instances of one image; None keeps all the model reports.
            classes: class names or indices to keep; None keeps all.

        Returns:
            Instances for one image; list[Instances] in the order of an iterable.

        Raises:
            InputError: an image that can't be read; nothing is returned for the others.
            ConfigError: an option out of range.
        """
        filter_ = filter_for(
            self.config,
            score_threshold=score_threshold,
            max_detections=max_detections,
            classes=classes,
        )
        return self._run(source, self._to_instances(filter_), channel_order)

    @overload
    def panoptic(
        self,
        source: ImageSource,
        *,
        channel_order: ChannelOrder = "bgr",
        **thresholds: Unpack[Thresholds],
    ) -> "PanopticSegmentation": ...

    @overload
    def panoptic(
        self,
        source: Iterable[ImageSource],
        *,
        channel_order: ChannelOrder = "bgr",
        **thresholds: Unpack[Thresholds],
    ) -> "list[PanopticSegmentation]": ...

    def panoptic(
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        channel_order: ChannelOrder = "bgr",
        instance_threshold: float | None = None,
        overlap_threshold: float | None = None,
        stuff_area_limit: int | None = None,
    ) -> "PanopticSegmentation | list[PanopticSegmentation]":
        """Segment every pixel: instances and, where there is none, stuff; journal section 3.4.

        None is what the model file says, usually the papers' value.

        Args:
            source, channel_order: one image or an iterable, as in a call.
            instance_threshold: lowest reported score of an instance, 0 to 1.
            overlap_threshold: an instance that loses more of its area to better ones is dropped.
            stuff_area_limit: a kind of stuff on fewer pixels becomes void.

        Raises:
            InputError: an image that can't be read; nothing is returned for the others.
            ConfigError: the model has no semantic branch, or a threshold is out of range.
        """
        settings = panoptic_settings(
            self.config,
            instance_threshold=instance_threshold,
            overlap_threshold=overlap_threshold,
            stuff_area_limit=stuff_area_limit,
        )
        from condinst_infer.processing.panoptic import panoptic_from_outputs

        to_result = partial(panoptic_from_outputs, config=self.config, settings=settings)
        return self._run(source, to_result, channel_order, settings)

    def map(
        self,
        sources: Iterable[ImageSource] | os.PathLike[str],
        *,
        workers: int = 1,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> Generator[Instances, None, None]:
        """The instances of each image, in the order of `sources`, which may have no end.

        Each result is that of a call with this image alone, but has no `on_device`: the calls
        that follow write there. Load the model with the same number of workers.

        Args:
            sources: images as in a call; taken one by one, as results are asked for. A folder, or
                a pattern such as "scans/**/*.png", gives the image files below it, sorted.
            workers: batches worked on at the same time, each by a thread that reads, runs the
                model and makes masks. At most 2 * `workers` batches are on their way; a batch is
                one image unless `max_batch` or the file says otherwise. 1 works in the thread
                that asks, and nothing ahead.
            channel_order, score_threshold, max_detections, classes: as in a call.

        Raises:
            InputError: a folder or a pattern without images, at once; an image that can't be
                read, in the place of its result; it ends the iterator, and so does an error of
                `sources`.
            ConfigError: an option out of range, at once.
        """
        check_workers(workers)
        check_channel_order(channel_order)
        if isinstance(sources, (str, os.PathLike)):
            from condinst_infer.processing.image_files import image_paths

            sources = image_paths(sources)
        elif is_one(sources):
            raise InputError("map takes an iterable of images; call the pipeline with one image.")
        filter_ = filter_for(
            self.config,
            score_threshold=score_threshold,
            max_detections=max_detections,
            classes=classes,
        )
        batches = groups(sources, self.metadata.batch or self._max_batch)
        run = partial(self._run_until_failure, channel_order=channel_order, filter_=filter_)
        return flat(in_order(run, batches, workers=workers))

    def stream(
        self,
        source: "StreamSource",
        *,
        workers: int = 1,
        every: int = 1,
        reconnect: int = RECONNECT,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        classes: Classes | None = None,
    ) -> "FrameStream[Instances]":
        """(frame, instances) of each frame of a video, in order; `FrameStream` says how.

        Args:
            source: video file, camera number, URL (RTSP, HTTP) or folder of images.
            workers: threads that run the model, beside one that decodes; load with as many.
            every: take every n-th frame only.
            reconnect: attempts to open a camera or a live URL again once it broke off.
            score_threshold, max_detections, classes: as in a call.

        Raises:
            InputError: the source can't be opened; later, in the place of a result, it is lost.
        """
        from condinst_infer.video.sources import open_source
        from condinst_infer.video.stream import FrameStream, work_on_images

        options = {
            "score_threshold": score_threshold,
            "max_detections": max_detections,
            "classes": classes,
        }
        filter_for(self.config, **options)  # raises here, not in the place of a result
        opened = open_source(source, reconnect=reconnect, max_pixels=self._max_pixels)
        work = work_on_images(partial(self.map, **options))
        batch = self.metadata.batch or self._max_batch
        return FrameStream(opened, work, workers=workers, every=every, batch=batch)

    def frame_buffer(self, height: int, width: int) -> NDArray[np.uint8]:
        """Memory for frames of a camera, uint8 [height, width, 3]: the fastest way to a GPU.

        Fill it and call the pipeline with it. The memory is page-locked, so that the GPU reads it
        while the host does something else; other arrays are copied once more. On a CPU it is an
        array as any other.

        Raises:
            ConfigError: a side is not a whole number from 1.
        """
        check_whole(height=height, width=width)
        return self._runner.frame_buffer((height, width, 3))

    def _to_instances(self, filter_: Filter) -> ToResult[Instances]:
        return partial(instances_from_outputs, config=self.config, filter_=filter_)

    def _run_until_failure(
        self, sources: list[ImageSource], channel_order: ChannelOrder, filter_: Filter
    ) -> tuple[list[Instances], InputError | None]:
        """Results up to the first image that can't be read, and why it can't."""
        place = partial(self._place, channel_order=channel_order)
        images, failure = until_failure(sources, place)
        results = self._run_batches(images, self._to_instances(filter_))
        return [replace(r, on_device=None) if r.on_device else r for r in results], failure

    def _run(
        self,
        source: Any,
        to_result: ToResult[Result],
        channel_order: ChannelOrder,
        panoptic: PanopticConfig | None = None,
    ) -> Any:
        """The result of one image, or a list of the results of many."""
        check_channel_order(channel_order)
        one = is_one(source)
        place = partial(self._place, channel_order=channel_order)
        images = map(place, [source] if one else source)
        results = self._run_batches(images, to_result, panoptic)
        return results[0] if one else results

    def _run_batches(
        self,
        images: Iterable[PlacedImage],
        to_result: ToResult[Result],
        panoptic: PanopticConfig | None = None,
    ) -> list[Result]:
        """The result of each image, in order; images of one canvas share a batch."""
        results: dict[int, Result] = {}
        for batch in by_canvas(images, self.metadata.batch or self._max_batch):
            outputs = self._runner.run([placed for _, placed in batch], panoptic)
            for index, (position, placed) in enumerate(batch):
                results[position] = to_result(outputs, index, placed)
        return [results[position] for position in sorted(results)]

    def _place(self, source: ImageSource, channel_order: ChannelOrder) -> PlacedImage:
        """Read an image, and decide its size and canvas."""
        image = self._runner.image(source, self._max_pixels, channel_order)
        return place_image(image, self.config.input, self.metadata.size)

    def close(self) -> None:
        """Free the model; later calls raise SessionError."""
        self._runner.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
