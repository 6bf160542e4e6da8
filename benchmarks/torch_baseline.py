"""A network in PyTorch as the engine of the device pipeline: for GPUs without TensorRT."""

from collections.abc import Mapping
from typing import Any

import torch

from condinst_infer.contract.metadata import Metadata
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Stream
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
        context.graph = None

    def close(self) -> None:
        """Nothing to do."""


class TorchContext:
    """The detector for one shape, from and to always the same arrays."""

    def __init__(self, model: CondInst) -> None:
        self.model, self.graph, self.places = model, None, None
        self.graph: Any
        self.places: tuple[int, ...] | None

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        inputs = [tensor_from(feeds[name]) for name in ("images", "image_sizes")]
        targets = {name: tensor_from(array) for name, array in outputs.items()}

        def work() -> None:
            for name, value in self.model.detector(*inputs).items():
                targets[name].copy_(value)

        with torch.inference_mode():
            if not torch.cuda.is_available():
                return work()
            places = tuple(array.pointer for array in (*feeds.values(), *outputs.values()))
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                if places != self.places:
                    self.places, self.graph = places, _recorded(work)
                self.graph.replay()


def _recorded(work: Any) -> Any:
    """`work` as a CUDA graph."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
