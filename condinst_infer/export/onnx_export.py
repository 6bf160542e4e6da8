"""Checkpoint to one ONNX file that runs everywhere; the contract is in export/README.md."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from condinst_infer.config.model import CondInstConfig
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import contract_outputs
from condinst_infer.contract.weights_sha256 import add_weights_sha256
from condinst_infer.errors import CheckpointError, ConfigError, require
from condinst_infer.export.function_bodies import OPSET, functions
from condinst_infer.export.graph_passes import (
    merge_predictors,
    name_by_scope,
    replace_clips,
    set_contract_shapes,
)
from condinst_infer.export.standard_ops import with_standard_ops
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.deploy import in_precision
from condinst_infer.model.weights import check_finite, is_finite

GRAPHS = ("full", "detector")
PRECISIONS = ("fp32", "fp16")


class TracedCut(nn.Module):
    """The cut of the network that becomes the graph; outputs in the order of the contract."""

    def __init__(self, model: CondInst, graph: str) -> None:
        super().__init__()
        self.model, self.graph = model, graph

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        run = self.model if self.graph == "full" else self.model.detector
        return tuple(run(images, image_sizes).values())


def export_onnx(
    model: CondInst,
    path: str | Path,
    *,
    graph: str = "full",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    standard_ops: bool = False,
    checkpoint_sha256: str = "",
    on_stage: Callable[[str], object] = lambda stage: None,
) -> None:
    """Write `model` to `path` as ONNX with function bodies and metadata inside.

    Args:
        graph: "full" from images to masks, "detector" stops before NMS.
        precision: "fp16" halves weights and features; scores, boxes, coordinates, NMS stay float32.
        size: (height, width) of a static canvas, multiples of 32; None is dynamic.
        batch: images per run; None is dynamic.
        standard_ops: no node of our domain, and with `size` and `batch` no Loop and no If; a
            TensorRT engine of such a file has none of our kernels.
        checkpoint_sha256: of the file `model` came from, for the metadata.
        on_stage: called with the name of each stage of the work when it begins.

    Raises:
        CheckpointError: a weight is not finite, or too large for fp16.
        ConfigError: a size, batch, graph or precision that can't be.
    """
    _check(model.config, graph, precision, size, batch)
    require("onnxscript", "export")
    traced = TracedCut(_deployed(model, precision), graph).eval()
    metadata = Metadata(
        config=model.config,
        graph=graph,
        precision=precision,
        size=size,
        batch=batch,
        checkpoint_sha256=checkpoint_sha256,
        versions=_versions(),
    )
    on_stage("tracing")
    proto = _trace(traced, metadata)
    on_stage("writing")
    name_by_scope(proto)
    merge_predictors(proto)
    replace_clips(proto.graph)
    for key, value in metadata.to_props().items():
        proto.metadata_props.add(key=key, value=value)
    if graph == "full":
        proto.functions.extend(functions(model.config))
    set_contract_shapes(proto, metadata)
    # the tracer's choice is newer than the operations need, which old runtimes refuse
    proto.ir_version = onnx.helper.find_min_ir_version_for(
        list(proto.opset_import), ignore_unknown=True
    )
    if standard_ops:
        proto = with_standard_ops(proto)
    add_weights_sha256(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def _deployed(model: CondInst, precision: str) -> CondInst:
    """`model` as `in_precision` makes it; CheckpointError if a weight there isn't finite."""
    check_finite(model.state_dict())
    deployed = in_precision(model, precision)
    for name, tensor in deployed.state_dict().items():
        if is_finite(tensor):
            continue
        if precision == "fp16" and not tensor.isnan().any():
            raise CheckpointError(
                f"the weight {name}, with the batch norm behind it, is larger than fp16 can hold, "
                "which ends at 65504. Export in fp32."
            )
        raise CheckpointError(
            f"the weight {name} is not finite with the batch norm behind it: look at the variance "
            "there, which can't be negative."
        )
    return deployed


def _trace(traced: TracedCut, metadata: Metadata) -> onnx.ModelProto:
    size, batch = metadata.size, metadata.batch
    # sizes that no dimension could be taken for by chance; batch 2 because 1 is special to tracing
    height, width = size or (160, 224)
    images = torch.zeros((batch or 2, height, width, 3), dtype=torch.uint8)
    image_sizes = torch.tensor([[height, width]] * len(images), dtype=torch.int32)
    axes: tuple[dict[int, object], dict[int, object]] = ({}, {})
    if batch is None:
        axes[0][0] = axes[1][0] = torch.export.Dim("N")
    if size is None:
        axes[0][1] = 32 * torch.export.Dim("H_32", max=512)
        axes[0][2] = 32 * torch.export.Dim("W_32", max=512)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            traced,
            (images, image_sizes),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=["images", "image_sizes"],
            output_names=list(contract_outputs(metadata)),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _check(
    config: CondInstConfig,
    graph: str,
    precision: str,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    if graph not in GRAPHS:
        raise ConfigError(f"the graph is {graph!r}; it must be one of {', '.join(GRAPHS)}.")
    if precision not in PRECISIONS:
        raise ConfigError(f"the precision is {precision!r}; it must be one of {PRECISIONS}.")
    divisor = config.input.size_divisor
    if size is not None and (min(size) < divisor or any(s % divisor for s in size)):
        raise ConfigError(
            f"the size is {size[0]}x{size[1]}; both must be positive multiples of {divisor}."
        )
    if batch is not None and batch < 1:
        raise ConfigError(f"the batch is {batch}; it must be at least 1, or dynamic.")


def _versions() -> dict[str, str]:
    found = {}
    for package in ("condinst-infer", "torch", "onnx", "onnxscript"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says about itself: its warnings concern its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
