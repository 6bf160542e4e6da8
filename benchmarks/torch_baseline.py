"""A network in PyTorch as the engine of the device pipeline: for GPUs without TensorRT."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from condinst_infer.contract.metadata import Metadata
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.stream import Stream
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.deploy import in_precision
from condinst_infer.profiling.gpu.scenes import tensor_from

WARM_UP = 3  # runs before PyTorch records a graph; it asks for some


class TorchDetector:
    """The detector cut, channels last, batch norms folded, one CUDA graph per shape."""

    capturable = False  # PyTorch records a graph of its own

    def __init__(self, model: CondInst, precision: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = in_precision(model, precision).to(device)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.metadata = Metadata(config=model.config, graph="detector", precision=precision)

    def context(self) -> "TorchContext":
        return TorchContext(self.model)

    def release(self, context: "TorchContext") -> None:
        """Free the graph; a later run records another one."""
        context.graph = None

    def close(self) -> None:
        """Nothing to do."""


class TorchContext:
    """The detector for one shape, from and to always the same arrays."""

    def __init__(self, model: CondInst) -> None:
        self.model = model
        self.graph: Any = None
        self._places: tuple[int, ...] | None = None  # of what `_work` reads and writes
        self._work: Callable[[], None] = lambda: None

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        with self.on(feeds, outputs, stream) as launch:
            launch()

    @contextmanager
    def on(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> Iterator[Callable[[], None]]:
        """A call that puts the detector on `stream` and does nothing else on the host."""
        places = tuple(array.pointer for array in (*feeds.values(), *outputs.values()))
        with torch.inference_mode():
            if not torch.cuda.is_available():
                self._prepare(places, feeds, outputs)
                yield self._work
                return
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                if self._prepare(places, feeds, outputs) or self.graph is None:
                    self.graph = _recorded(self._work)
                yield self.graph.replay

    def _prepare(
        self,
        places: tuple[int, ...],
        feeds: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> bool:
        """Make tensors of arrays that are not those of the last call; whether they are not."""
        if places == self._places:
            return False
        inputs = [tensor_from(feeds[name]) for name in ("images", "image_sizes")]
        targets = {name: tensor_from(array) for name, array in outputs.items()}

        def work() -> None:
            for name, value in self.model.detector(*inputs).items():
                targets[name].copy_(value)

        self._places, self._work = places, work
        return True


def _recorded(work: Callable[[], None]) -> Any:
    """`work` as a CUDA graph."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
