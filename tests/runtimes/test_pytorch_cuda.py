"""PyTorch's detector before our kernels: on the emulated driver, with tensors over its memory.

Here PyTorch has no GPU, so its graphs and streams are stand-ins; what they are asked is checked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import condinst_infer as ci
from condinst_infer import checkpoint
from condinst_infer.config.model import override
from condinst_infer.contract.tensors import contract_outputs, output_shapes
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device, DriverError
from condinst_infer.cuda.runner import CudaRunner
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from condinst_infer.model.condinst import CondInst
from condinst_infer.runtimes import pytorch_cuda
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.runtimes.pytorch_cuda import TorchContext, TorchDetector, cuda_place
from engines.emulator import Emulator, host
from tests.support.recorded_session import photograph
from tests.support.reduced_networks import reduced_network

CPU = torch.device("cpu")  # the emulator's memory is the host's
NET_SIZE = (128, 192)  # photographs as large as the network wants them: no resizing that differs
SECOND_GPU = torch.device("cuda", 1)


def on_device(device: Device, model: CondInst, **options: Any) -> ci.Pipeline:
    return ci.Pipeline(CudaRunner(TorchDetector(model, CPU), device), **options)


def assert_near(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    assert np.array_equal(ours.labels, theirs.labels)
    assert np.abs(ours.scores - theirs.scores).max() < 1e-5  # measured 2e-6
    assert np.abs(ours.boxes - theirs.boxes).max() < 1e-3  # measured 9.2e-5
    assert (ours.masks != theirs.masks).mean() < 1e-4  # p near 0.5 may go either way


@pytest.mark.parametrize(
    "name", ["nano_checkpoint", pytest.param("mask_nms_checkpoint", marks=pytest.mark.slow)]
)
def test_a_checkpoint_gives_on_the_device_what_it_gives_on_the_cpu(
    name: str, device: Device, request: pytest.FixtureRequest
) -> None:
    model = checkpoint.load(request.getfixturevalue(name))
    model.config = override(model.config, score_threshold=0.35)
    images = [photograph(NET_SIZE, i) for i in range(3)]
    with ci.Pipeline(TorchSession(model)) as on_cpu, on_device(device, model) as pipeline:
        expected = on_cpu(images)
        assert len(set(map(len, expected))) > 1, [len(result) for result in expected]
        for ours, theirs in zip(pipeline(images), expected, strict=True):
            assert_near(ours, theirs)
        assert_near(pipeline(images[1]), expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["condinst_r101_dcn_bifpn_sem", "condinst_rt_dla34_shtw"])
def test_other_networks_give_on_the_device_what_they_give_on_the_cpu(
    name: str, device: Device
) -> None:
    model = reduced_network(name)
    images = [photograph(NET_SIZE, i) for i in range(2)]
    with ci.Pipeline(TorchSession(model)) as on_cpu, on_device(device, model) as pipeline:
        for ours, theirs in zip(pipeline(images), on_cpu(images), strict=True):
            assert len(theirs) > 3
            assert_near(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["box", "mask"])
def test_panoptic_maps_are_those_of_the_cpu(
    nms: str, device: Device, panoptic_checkpoint: Path
) -> None:
    model = checkpoint.load(panoptic_checkpoint)
    model.config = override(model.config, nms=nms, mask_nms_candidates=40)
    images = [photograph(NET_SIZE, i) for i in range(2)]
    rules: dict[str, Any] = {"instance_threshold": 0.5, "stuff_area_limit": 40}
    with ci.Pipeline(TorchSession(model)) as on_cpu, on_device(device, model) as pipeline:
        expected = on_cpu.panoptic(images, **rules)
        for ours, theirs in zip(pipeline.panoptic(images, **rules), expected, strict=True):
            assert len(theirs.segments) > 2 and any(s.is_thing for s in theirs.segments)
            assert [s.name for s in ours.segments] == [s.name for s in theirs.segments]
            assert np.mean(ours.id_map != theirs.id_map) < 1e-4


@pytest.mark.slow
def test_threads_get_what_one_gets(device: Device, nano_checkpoint: Path) -> None:
    images = [photograph(NET_SIZE, i) for i in range(6)]
    with on_device(device, checkpoint.load(nano_checkpoint)) as pipeline:
        alone = [pipeline(image) for image in images]
        for ours, theirs in zip(pipeline.map(images, workers=3), alone, strict=True):
            assert np.array_equal(ours.masks, theirs.masks)
            assert np.array_equal(ours.scores, theirs.scores)


class Runs:
    """A context of a detector with arrays for an image of 32x32, and the outputs to expect."""

    def __init__(self, stream: Stream, model: CondInst, precision: str = "fp32") -> None:
        self.stream = stream
        self.session = TorchDetector(model, CPU, precision=precision)
        self.context: TorchContext = self.session.context()
        self.images = stream.empty((1, 32, 32, 3), np.uint8)
        self.outputs = self.other_outputs()

    def other_outputs(self) -> dict[str, DeviceArray]:
        metadata = self.session.metadata
        shapes = output_shapes(metadata, 1, (32, 32))
        return {
            name: self.stream.empty(shapes[name], spec.dtype)
            for name, spec in contract_outputs(metadata).items()
        }

    def check(self, seed: int, rows: int = 32, context: TorchContext | None = None) -> None:
        """Run on the image of `seed`, of which `rows` are valid; compare with the network."""
        image, sizes = photograph((32, 32), seed)[None], np.array([[rows, 32]], np.int32)
        host(self.images)[...] = image
        feeds = {"images": self.images, "image_sizes": self.stream.array(sizes)}
        (context or self.context).enqueue(feeds, self.outputs, self.stream)
        model = self.session.require_open()
        with torch.inference_mode():
            expected = model.detector(torch.from_numpy(image), torch.from_numpy(sizes))
        for name, array in self.outputs.items():
            assert np.array_equal(host(array), expected[name].numpy()), name


class Graph:
    """A CUDA graph's stand-in: `replay` runs what was recorded, on the tensors of then."""

    def __init__(self) -> None:
        self.work: Callable[[], None] = lambda: None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.work()

    def pool(self) -> int:
        return id(self)


class Recorder:
    """Stands for `torch.cuda.graph`: what is called in the block does nothing until a replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graphs: list[Graph] = []
        self.pools: list[Any] = []
        self.error: Exception | None = None  # of the end of a recording
        self._recording: Graph | None = None
        run = TorchContext._run

        def recorded(context: TorchContext) -> None:
            if self._recording is None:
                return run(context)
            assert context._runs > 0  # PyTorch wants a plain run before
            self._recording.work = lambda: run(context)

        monkeypatch.setattr(TorchContext, "_run", recorded)
        monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
        monkeypatch.setattr("torch.cuda.current_stream", lambda: "our stream")
        monkeypatch.setattr("torch.cuda.graph", self._record)

    @contextmanager
    def _record(
        self, graph: Graph, pool: Any, stream: str, capture_error_mode: str
    ) -> Iterator[None]:
        assert (stream, capture_error_mode) == ("our stream", "thread_local")
        self.pools.append(pool)
        self.graphs.append(graph)
        self._recording = graph
        try:
            yield
        finally:
            self._recording = None
        if self.error is not None:
            raise self.error


@pytest.fixture
def runs(device: Device, nano_checkpoint: Path) -> Iterator[Runs]:
    """One detector; it makes graphs as on a GPU."""
    stream = Stream(device)
    runs = Runs(stream, checkpoint.load(nano_checkpoint))
    runs.session.has_graphs = True
    yield runs
    runs.session.close()
    stream.close()


def test_the_second_run_of_a_shape_makes_a_graph_for_all_later_ones(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, counts = Recorder(monkeypatch), []
    for seed, rows in ((0, 32), (1, 32), (2, 19), (3, 32)):  # sizes come in other arrays
        runs.check(seed, rows)
        counts.append([graph.replays for graph in recorder.graphs])
    assert counts == [[], [1], [2], [3]]
    runs.outputs = runs.other_outputs()
    for seed in range(2):
        runs.check(seed)
    assert [graph.replays for graph in recorder.graphs] == [3, 1]
    runs.session.release(runs.context)
    assert runs.context.graph is None and recorder.pools == [None, None]


def test_graphs_on_one_stream_share_their_memory(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    contexts = [runs.context, runs.session.context(), runs.session.context()]
    for context in contexts[:2]:
        for seed in range(2):
            runs.check(seed, context=context)
    runs.session.release(contexts[1])
    own, runs.stream = runs.stream, Stream(runs.stream.device)
    for seed in range(2):
        runs.check(seed, context=contexts[2])
    runs.stream.close()
    runs.stream = own
    assert recorder.pools == [None, recorder.graphs[0].pool(), None]


@pytest.mark.parametrize("when", ["recorded", "launched"])
def test_a_graph_that_is_refused_costs_no_result_and_is_logged_once(
    when: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, error = Recorder(monkeypatch), RuntimeError("CUDA error: made up")

    def refused(graph: Graph) -> None:
        raise error

    if when == "recorded":
        recorder.error = error
    else:
        monkeypatch.setattr(Graph, "replay", refused)
    for context in (runs.context, runs.session.context()):
        for seed in range(3):
            runs.check(seed, context=context)
    assert len(recorder.graphs) == 1 and runs.context.graph is None
    (record,) = caplog.records
    assert "without CUDA graphs, a little slower: CUDA error: made up" in record.getMessage()
    assert "<TorchDetector: condinst_nano" in record.getMessage()


@pytest.mark.parametrize("named_per_operation", [False, True])
def test_convolutions_multiply_in_float32_as_on_a_cpu(
    named_per_operation: bool, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (
        SimpleNamespace(enabled=True, allow_tf32=True),
        SimpleNamespace(fp32_precision="tf32"),
    )
    if named_per_operation:  # PyTorch 2.9 and later
        old.conv = new
    monkeypatch.setattr("torch.backends.cudnn", old)
    seen, run = [], TorchContext._run

    def observed(context: TorchContext) -> None:
        seen.append((old.allow_tf32, new.fp32_precision))
        run(context)

    monkeypatch.setattr(TorchContext, "_run", observed)
    runs.check(0)
    assert seen == [(True, "ieee") if named_per_operation else (False, "tf32")]
    assert (old.allow_tf32, new.fp32_precision) == (True, "tf32")


def test_pytorch_works_on_our_stream_and_gpu(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def current(stream: tuple[int, torch.device]) -> Iterator[None]:
        inside.append(stream)
        yield

    inside: list[tuple[int, torch.device]] = []
    monkeypatch.setattr("torch.cuda.ExternalStream", lambda handle, device: (handle, device))
    monkeypatch.setattr("torch.cuda.stream", current)
    runs.session.place = SECOND_GPU
    with runs.context._on(runs.stream):
        assert inside == [(runs.stream.handle, SECOND_GPU)]
    runs.session.place = CPU


def test_memory_that_pytorch_keeps_is_given_back_where_it_is_short(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    emptied: list[int] = []
    free = 50

    def mem_get_info(place: torch.device) -> tuple[int, int]:
        asked.append(place)
        return free, 100

    monkeypatch.setattr("torch.cuda.mem_get_info", mem_get_info)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(free))
    runs.session.place = SECOND_GPU
    runs.session.release(runs.session.context())
    free = 20
    runs.session.release(runs.session.context())
    assert asked == [SECOND_GPU] * 2 and emptied == [20]
    free = 90
    runs.session.close()
    runs.session.close()
    assert emptied == [20, 90]


def test_full_memory_is_freed_and_tried_again(
    device: Device, nano_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failures = TorchContext._run, 1

    def short(context: TorchContext) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        run(context)

    monkeypatch.setattr(TorchContext, "_run", short)
    image = photograph((32, 32))
    with on_device(device, checkpoint.load(nano_checkpoint)) as pipeline:
        assert len(pipeline(image)) > 0
        failures = 2
        with pytest.raises(DriverError, match="the GPU has no memory left") as caught:
            pipeline(image)
        assert caught.value.out_of_memory


def test_a_failure_of_pytorch_is_one_sentence(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(context: TorchContext) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(TorchContext, "_run", failing)
    with pytest.raises(SessionError, match=r"^PyTorch failed on cpu: .* is available\.$"):
        runs.check(0)


def test_half_precision_reaches_the_outputs(device: Device, nano_checkpoint: Path) -> None:
    stream = Stream(device)
    runs = Runs(stream, checkpoint.load(nano_checkpoint), "fp16")
    runs.check(0)
    assert runs.outputs["mask_features"].dtype == np.float16
    stream.close()


def test_a_closed_detector_says_so(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    for seed in range(2):
        runs.check(seed)
    assert repr(runs.session).endswith("fp32, detector graph, any batch, any size; PyTorch on cpu>")
    runs.session.close()
    assert repr(runs.session).endswith("PyTorch on cpu, closed>")
    for call in (runs.session.context, lambda: runs.check(0)):
        with pytest.raises(SessionError, match="this session is closed"):
            call()
    assert [graph.replays for graph in recorder.graphs] == [1]  # its weights are no more


@pytest.mark.parametrize(
    ("cuda", "available", "words"),
    [
        (None, False, r"PyTorch 2\S+ has no CUDA\. .*condinst export"),
        (None, True, "has no CUDA"),  # an AMD GPU
        ("13.0", False, r"has CUDA 13\.0 and finds no GPU for it\. Install .* condinst doctor"),
        ("13.0", True, "PyTorch sees 1 GPUs, not a GPU 1"),
    ],
)
def test_a_pytorch_that_cannot_use_the_gpu_is_refused_with_what_to_do(
    cuda: str | None, available: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.cuda.is_available", lambda: available)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SessionError, match=words):
        cuda_place(1)
    if cuda and available:
        assert cuda_place(0) == torch.device("cuda", 0)


def test_load_opens_a_checkpoint_on_the_gpu_of_its_number(
    device: Device,
    cuda_emulator: Emulator,
    nano_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SessionError, match=r"PyTorch .* condinst export MODEL\.safetensors"):
        ci.load(nano_checkpoint, device="cuda")
    numbers: list[int] = []
    monkeypatch.setattr(pytorch_cuda, "cuda_place", lambda index: (numbers.append(index), CPU)[1])
    cuda_emulator.devices(2)
    try:
        with ci.load(nano_checkpoint, device="cuda:1") as pipeline:
            assert len(pipeline(photograph((32, 32)))) > 0
            assert isinstance(pipeline._runner, CudaRunner)
            assert numbers == [1] and pipeline._runner._device.index == 1
            with ci.load(nano_checkpoint) as on_cpu:
                digest = on_cpu.metadata.checkpoint_sha256
            assert pipeline.metadata.checkpoint_sha256 == digest != ""
    finally:
        cuda_emulator.devices(1)
