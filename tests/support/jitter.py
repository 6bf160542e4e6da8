"""Runtimes that compute as another machine might: the options --jitter and --ort-basic.

CPUs, versions of a runtime and its optimisation levels add float32 numbers in other orders. With
`--jitter` every float that a session puts out is moved by about three times what was seen between
them, so that an expectation without room fails here and not on somebody else's machine. The shift
comes from the bits of the value: equal values stay equal, and neighbours go different ways.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import pytest

# what whole networks put out: pixels of boxes, probabilities of the rest
AMOUNTS = {
    **dict.fromkeys(("boxes", "candidate_boxes"), 2e-4),
    **dict.fromkeys(("scores", "candidate_scores"), 1e-6),
    **dict.fromkeys(("masks", "candidate_masks"), 3e-5),
}
RELATIVE = 1e-6  # of the value, for every other output, and all of a single operation
PROBABILITIES = {"scores", "candidate_scores", "masks", "candidate_masks"}
EXACT = {"kept_scores"}  # mask NMS takes these from its input, or divides them
# NMS and mask heads of an exported file are verified on its own inputs: only what lies before
# candidates may move there, or the file would contradict itself
BEFORE_CANDIDATES = {
    *("class_logits", "box_regression", "centreness"),
    *("params_map", "mask_features", "semantic"),
}
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # by the bytes of a float

_state = threading.local()  # .inside: a session that runs another one moves its outputs once


def moved(name: str, values: np.ndarray, scale: float = 1.0, *, network: bool = True) -> np.ndarray:
    """The values of output `name`, each moved by at most `scale` times its amount.

    Without `network` they are those of a single operation, which adds fewer numbers: all amounts
    are relative.

    Probabilities stay from 0 to 1. What is exactly 0 or -1 stays, as unused slots hold it, and
    what is not finite. Scores with the best first keep that order.
    """
    if values.dtype.kind != "f" or name in EXACT:
        return values
    exact = values.astype(np.float64)
    relative = RELATIVE * np.abs(exact)
    amounts = AMOUNTS.get(name, relative) if network else relative
    with np.errstate(invalid="ignore"):  # infinity, which stays
        found = exact + scale * amounts * unit_hash(values)
    if name in PROBABILITIES:
        found = found.clip(0, 1)
    stays = (exact == 0) | (exact == -1) | ~np.isfinite(exact)
    found = np.where(stays, exact, found).astype(values.dtype)
    if name == "scores" and exact.ndim == 2 and (np.diff(exact, axis=1) <= 0).all():
        found = np.minimum.accumulate(found, axis=1)
    return found


def unit_hash(values: np.ndarray) -> np.ndarray:
    """A number from -1 to 1 for each float, float64: the finaliser of MurmurHash3 of its bits."""
    bits = values.copy(order="C").view(_WORDS[values.itemsize]).astype(np.uint64)
    bits = (bits ^ bits >> np.uint64(32)) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits ^= bits >> np.uint64(shift)
        bits = bits * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return bits / 0xFFFFFFFF * 2 - 1


@contextmanager
def suspended() -> Iterator[None]:
    """Leave the outputs of sessions alone, in this thread."""
    before = getattr(_state, "inside", False)
    _state.inside = True
    try:
        yield
    finally:
        _state.inside = before


def apply_jitter(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Move the float outputs of all runtimes by `scale` times their amounts."""
    _move_onnx_runtime(patch, scale)
    _move_torch(patch, scale)
    if find_spec("openvino") is not None:
        _move_openvino(patch, scale)


def _move_onnx_runtime(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Move what sessions of ONNX Runtime put out, those that a test opens itself too."""
    import onnxruntime

    from condinst_infer.verification.intermediates import OnnxIntermediates

    def before_candidates(_: Any, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: moved(n, v, scale) if n in BEFORE_CANDIDATES else v for n, v in outputs.items()}

    _wrap(patch, OnnxIntermediates, "run", before_candidates)
    plain = onnxruntime.InferenceSession.run

    def run(self: Any, names: Any, *args: Any, **options: Any) -> Sequence[Any]:
        if getattr(_state, "inside", False):
            return plain(self, names, *args, **options)
        with suspended():
            values = plain(self, names, *args, **options)
        names = names or [output.name for output in self.get_outputs()]
        network = any(given.name == "images" for given in self.get_inputs())
        return [
            moved(n, v, scale, network=network) if isinstance(v, np.ndarray) else v
            for n, v in zip(names, values, strict=True)
        ]

    patch.setattr(onnxruntime.InferenceSession, "run", run)


def _move_openvino(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Move what our session puts out, and a single operation that a test compiles itself."""
    import openvino

    from condinst_infer.runtimes.openvino import OvSession

    def of_operation(_: Any, outputs: Any) -> dict[Any, np.ndarray]:
        return {
            port: moved(port.get_any_name(), values, scale, network=False)
            for port, values in outputs.items()
        }

    _wrap(patch, OvSession, "run", _move_named(scale))
    _wrap(patch, openvino.CompiledModel, "__call__", of_operation)


def _move_named(scale: float) -> Callable[[Any, Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """What moves the outputs of a network's `run`."""
    return lambda _, outputs: {name: moved(name, v, scale) for name, v in outputs.items()}


def _move_torch(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Move what the network in PyTorch puts out, where it is neither trained nor exported."""
    import torch

    from condinst_infer.model.condinst import CondInst
    from condinst_infer.verification.intermediates import TorchIntermediates

    def tensor(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(tensor(name, part) for part in value)
        if not isinstance(value, torch.Tensor) or value.dtype == torch.bfloat16:
            return value
        return torch.from_numpy(moved(name, value.cpu().numpy(), scale)).to(value.device)

    def of_network(model: Any, outputs: Any) -> Any:
        if model.training or not torch.is_inference_mode_enabled() or torch.compiler.is_exporting():
            return outputs
        if isinstance(outputs, dict):
            return {name: tensor(name, value) for name, value in outputs.items()}
        return type(outputs)(**{n: tensor(n, value) for n, value in outputs._asdict().items()})

    _wrap(patch, TorchIntermediates, "run", _move_named(scale))
    for method in ("forward", "heads", "finish", "detector", "before_nms"):
        _wrap(patch, CondInst, method, of_network)


def _wrap(
    patch: pytest.MonkeyPatch, owner: type, method: str, change: Callable[[Any, Any], Any]
) -> None:
    """Let `change` of the object and what `method` returns take the place of the latter."""
    plain = getattr(owner, method)

    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        if getattr(_state, "inside", False):
            return plain(self, *args, **options)
        with suspended():
            found = plain(self, *args, **options)
        return change(self, found)

    patch.setattr(owner, method, wrapped)


def apply_ort_basic(patch: pytest.MonkeyPatch) -> None:
    """Let every session of ONNX Runtime optimise its graph at level basic: other kernels run."""
    import onnxruntime

    plain = onnxruntime.InferenceSession.__init__

    def init(self: Any, model: Any, sess_options: Any = None, *args: Any, **options: Any) -> None:
        sess_options = sess_options or onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        sess_options.graph_optimization_level = level
        plain(self, model, sess_options, *args, **options)

    patch.setattr(onnxruntime.InferenceSession, "__init__", init)


def add_options(parser: pytest.Parser) -> None:
    """The options of this file."""
    group = parser.getgroup("numerics", "compute as other machines do")
    group.addoption(
        "--jitter",
        nargs="?",
        const=1.0,
        type=float,
        metavar="SCALE",
        help="move each float that a session puts out by up to SCALE (default 1) times what "
        "runtimes and CPUs differ by; write --jitter=SCALE or another option after it",
    )
    group.addoption(
        "--ort-basic",
        action="store_true",
        help="let ONNX Runtime optimise at level basic, which takes other convolution kernels",
    )


def configure(config: pytest.Config) -> None:
    """Do what the options say until the end of the tests."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    if (scale := cast("float | None", config.getoption("--jitter"))) is not None:
        apply_jitter(patch, scale)
    if config.getoption("--ort-basic"):
        apply_ort_basic(patch)
