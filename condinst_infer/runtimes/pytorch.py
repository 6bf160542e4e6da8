"""The network in PyTorch behind the same contract as every other runtime."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from condinst_infer.config.validation import check_threads
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.session import NodeTime
from condinst_infer.contract.tensors import check_feeds, contract_inputs, contract_outputs
from condinst_infer.errors import SessionError
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.spans import node_of_label, span_label


class TorchSession:
    """A network run by PyTorch where its weights are; safe to call from several threads.

    Args:
        model: in evaluation mode.
        checkpoint_sha256: of the file it came from, for the metadata.
        threads: CPU threads, at least 1; a setting of the whole process in PyTorch. None keeps it.
    """

    def __init__(
        self, model: CondInst, *, checkpoint_sha256: str = "", threads: int | None = None
    ) -> None:
        check_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model: CondInst | None = model
        self.metadata = Metadata(
            config=model.config,
            checkpoint_sha256=checkpoint_sha256,
            versions={"torch": torch.__version__},
        )
        self.inputs = contract_inputs(self.metadata)
        self.outputs = contract_outputs(self.metadata)

    def __repr__(self) -> str:
        if self.model is None:
            return f"<TorchSession: {self.metadata.describe()}; PyTorch, closed>"
        device = next(self.model.parameters()).device
        return f"<TorchSession: {self.metadata.describe()}; PyTorch on {device}>"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; `feeds` by name, as `inputs` describes them."""
        if self.model is None:
            raise SessionError("this session is closed.")
        check_feeds(self.inputs, feeds)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            outputs = self.model(*(torch.from_numpy(feeds[n]).to(device) for n in self.inputs))
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> list[NodeTime]:
        """See `Profiled`: a node is the work of a module between two calls of others."""
        if self.model is None:
            raise SessionError("this session is closed.")
        self.run(feeds)  # the first run also allocates
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with _module_spans(self.model), torch.profiler.profile(activities=cpu) as profiler:
            for _ in range(repeats):
                self.run(feeds)
        return [
            NodeTime(same[0].name, same[0].op, median(node.ms for node in same))
            for same in zip(*_runs_from_events(profiler.events() or ()), strict=True)
        ]

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self.model = None


@contextmanager
def _module_spans(model: CondInst) -> Iterator[None]:
    """While this is entered, each call of a module is a span named after it in the profile."""
    open_spans: list[Any] = []

    def begin(label: str) -> None:
        open_spans.append(record_function(label))
        open_spans[-1].__enter__()

    def end() -> None:
        open_spans.pop().__exit__(None, None, None)

    hooks = []
    for path, module in model.named_modules():
        label = span_label(path.replace(".", "/"), type(module).__name__)
        hooks.append(module.register_forward_pre_hook(lambda *_, label=label: begin(label)))
        hooks.append(module.register_forward_hook(lambda *_: end()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _runs_from_events(events: Iterable[Any]) -> list[list[NodeTime]]:
    """The times between two edges of spans, for each run of the network.

    A stretch of time belongs to the innermost span that is open.
    """
    edges = []
    for event in events:
        if (node := node_of_label(event.name)) is not None:
            start, end = event.time_range.start, event.time_range.end
            # where two edges coincide, outer spans begin first and inner ones end first
            edges += [(start, 1, -end, node), (end, 0, -start, node)]
    runs: list[list[NodeTime]] = []
    stack: list[tuple[str, str]] = []
    before = 0.0
    for time_us, begins, _, node in sorted(edges):
        if stack:
            runs[-1].append(NodeTime(*stack[-1], (time_us - before) / 1000))
        elif begins:
            runs.append([])
        if begins:
            stack.append(node)
        else:
            stack.pop()
        before = time_us
    return runs
