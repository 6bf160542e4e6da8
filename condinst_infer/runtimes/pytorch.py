"""The network in PyTorch behind the same contract as every other runtime."""

import sys
import time
from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from types import FrameType

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from condinst_infer.config.validation import check_threads
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.session import NodeTime, session_repr
from condinst_infer.contract.tensors import check_feeds, contract_inputs, contract_outputs
from condinst_infer.errors import SessionError
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.heads import Heads
from condinst_infer.ops import class_nms, dynamic_mask_head, mask_nms


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
            return session_repr(self, "PyTorch, closed")
        return session_repr(self, f"PyTorch on {next(self.model.parameters()).device}")

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
        """See `Profiled`: a node is what a module does between two calls of others, on the CPU."""
        if self.model is None:
            raise SessionError("this session is closed.")
        runs = []
        for _ in range(1 + repeats):
            with _Marks(self.model) as marks:
                self.run(feeds)
            runs.append(marks.times())
        return [
            NodeTime(same[0].name, same[0].op, median(node.ms for node in same))
            for same in zip(*runs[1:], strict=True)
        ]

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self.model = None


# functions that are parts of the network like modules, and what the exported graph calls them
_FUNCTIONS = {
    function.__code__: name
    for function, name in (
        (CondInst.normalised, "normalised"),
        (Heads.towers, "fcos"),
        (Heads.detector, "fcos"),
        (Heads.params_at, "fcos/controller"),
        (class_nms, "ClassNMS"),
        (mask_nms, "MaskNMS"),
        (dynamic_mask_head, "DynamicMaskHead"),
    )
}


class _Marks:
    """Notes when modules and `_FUNCTIONS` begin and end in this thread, while it is entered."""

    def __init__(self, model: CondInst) -> None:
        self._model = model
        self._open = [("", "CondInst")]
        self._marks: list[tuple[float, tuple[str, str]]] = []  # from then on, it is this one's time
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "_Marks":
        for path, module in self._model.named_modules():
            node = path.replace(".", "/"), type(module).__name__
            self._hooks += [
                module.register_forward_pre_hook(lambda *_, node=node: self._begin(node)),
                module.register_forward_hook(lambda *_: self._end()),
            ]
        self._before = sys.getprofile()
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)
        for hook in self._hooks:
            hook.remove()

    def times(self) -> list[NodeTime]:
        """What lies between one mark and the next."""
        return [
            NodeTime(*node, 1000 * (stop - start))
            for (start, node), (stop, _) in pairwise(self._marks)
        ]

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if frame.f_code in _FUNCTIONS:
            if event == "call":
                self._begin((_FUNCTIONS[frame.f_code], frame.f_code.co_name))
            elif event == "return":
                self._end()

    def _begin(self, node: tuple[str, str]) -> None:
        self._open.append(node)
        self._marks.append((time.perf_counter(), node))

    def _end(self) -> None:
        self._open.pop()
        self._marks.append((time.perf_counter(), self._open[-1]))
