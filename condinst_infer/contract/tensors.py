"""Names, types and shapes of the tensors of a model file: the contract (export/README.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from condinst_infer.config.model import SEMANTIC_STRIDE
from condinst_infer.contract.metadata import Metadata
from condinst_infer.errors import ModelFileError, SessionError, shorten


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of one input or output; a dimension without a fixed size is a name or "?"."""

    dtype: np.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


# what goes into the nodes of our domain, and what comes out of NMS, by the name of its stage
NODE_INPUTS = {
    "ClassNMS": ("candidate_boxes", "candidate_scores", "candidate_labels"),
    "CandidateMaskHead": (
        *("mask_features", "candidate_params", "candidate_centres"),
        *("candidate_sizes", "candidate_count"),
    ),
    "MaskNMS": ("candidate_masks", "candidate_scores", "candidate_labels"),
    "DynamicMaskHead": ("mask_features", "params", "centres", "sizes", "num_detections"),
}
NODE_OUTPUTS = {"ClassNMS": ("keep",), "MaskNMS": ("keep", "kept_scores")}
TAIL = "tail/"  # of these tensors in a file of standard operators, whose name is that of the stage

_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)
_SEMANTIC_SIZE = (f"H/{SEMANTIC_STRIDE}", f"W/{SEMANTIC_STRIDE}")


def contract_inputs(metadata: Metadata) -> dict[str, TensorSpec]:
    """The inputs a file with this metadata must have; dimension letters as in the contract."""
    batch = metadata.batch or "N"
    return {
        "images": TensorSpec(np.dtype(np.uint8), (batch, *(metadata.size or ("H", "W")), 3)),
        "image_sizes": TensorSpec(_INT32, (batch, 2)),
    }


def contract_outputs(metadata: Metadata) -> dict[str, TensorSpec]:
    """The outputs a file with this metadata must have; dimension letters as in the contract."""
    config = metadata.config
    slots = config.detect.max_detections
    half = np.dtype(np.float16) if metadata.precision == "fp16" else _FLOAT32
    semantic = {}
    if config.is_panoptic:
        classes = 1 + len(config.panoptic.stuff_names)
        semantic["semantic"] = TensorSpec(half, ("N", classes, *_SEMANTIC_SIZE))
    if metadata.graph == "full":
        return {
            "num_detections": TensorSpec(_INT32, ("N",)),
            "boxes": TensorSpec(_FLOAT32, ("N", slots, 4)),
            "scores": TensorSpec(_FLOAT32, ("N", slots)),
            "labels": TensorSpec(_INT32, ("N", slots)),
            "masks": TensorSpec(half, ("N", slots, "h", "w")),
            **semantic,
        }
    boxes = {"candidate_boxes": TensorSpec(_FLOAT32, ("N", "M", 4))}
    return {
        **(boxes if config.detect.nms == "box" else {}),
        "candidate_scores": TensorSpec(_FLOAT32, ("N", "M")),
        "candidate_labels": TensorSpec(_INT32, ("N", "M")),
        "candidate_locations": TensorSpec(_INT32, ("N", "M")),
        "params_map": TensorSpec(half, ("N", config.num_params, "A")),
        "mask_features": TensorSpec(half, ("N", config.mask.mask_channels, "h", "w")),
        **semantic,
    }


def output_shapes(
    metadata: Metadata, n: int, canvas: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Shape of each output for `n` images on a canvas of (height, width) pixels."""
    config = metadata.config

    def cells(stride: int) -> tuple[int, int]:
        return -(-canvas[0] // stride), -(-canvas[1] // stride)

    full = metadata.graph == "full"
    rows, columns = cells(config.mask.mask_stride if full else config.mask_feature_stride)
    sizes = {
        "N": n,
        "M": len(config.strides) * config.detect.pre_nms_topk,
        "A": sum(prod(cells(stride)) for stride in config.strides),
        "h": rows,
        "w": columns,
        **dict(zip(_SEMANTIC_SIZE, cells(SEMANTIC_STRIDE), strict=True)),
    }
    return {
        name: tuple(sizes[side] if isinstance(side, str) else side for side in spec.shape)
        for name, spec in contract_outputs(metadata).items()
    }


def check_contract(
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    metadata: Metadata,
    path: object,
) -> None:
    """ModelFileError if the tensors found in the file `path` are not those of the contract."""
    if metadata.graph not in ("full", "detector"):
        graph = shorten(metadata.graph)
        raise ModelFileError(f"{path} holds a graph {graph} this version can't run.")
    for kind, found, needed in (
        ("input", inputs, contract_inputs(metadata)),
        ("output", outputs, _file_outputs(metadata)),
    ):
        for name, spec in needed.items():
            if name not in found or not _like(found[name], spec):
                got = found[name] if name in found else "missing"
                raise ModelFileError(
                    f"{kind} {name!r} of {path} is {got}, the contract needs {spec}. "
                    "Export it again: condinst export MODEL.safetensors -o MODEL.onnx"
                )
        if surplus := sorted(set(found) - set(needed)):
            raise ModelFileError(
                f"{path} has {kind}s that are not in the contract: {', '.join(surplus)}."
            )


def _file_outputs(metadata: Metadata) -> dict[str, TensorSpec]:
    """`contract_outputs`, with the numbers of a static file in the place of its letters."""
    specs = contract_outputs(metadata)
    if metadata.size is None or metadata.batch is None:
        return specs
    shapes = output_shapes(metadata, metadata.batch, metadata.size)
    return {name: TensorSpec(spec.dtype, shapes[name]) for name, spec in specs.items()}


def check_feeds(inputs: Mapping[str, TensorSpec], feeds: Mapping[str, np.ndarray]) -> None:
    """SessionError if `feeds` are not exactly `inputs` by name, dtype and shape.

    A named dimension must have one size in all feeds; "?" takes any.
    """
    if set(feeds) != set(inputs):
        raise SessionError(f"the feeds are {sorted(feeds)}, the model needs {sorted(inputs)}.")
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        array = feeds[name]
        got = TensorSpec(array.dtype, array.shape)
        if not _like(got, spec):
            raise SessionError(f"input {name!r} is {got}, the model needs {spec}.")
        for letter, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(letter, str) and letter != "?" and sizes.setdefault(letter, size) != size:
                raise SessionError(
                    f"input {name!r} is {got}, the model needs {spec} with {letter} = "
                    f"{sizes[letter]} as in the other input."
                )


def _like(got: TensorSpec, needed: TensorSpec) -> bool:
    """True if type and rank are the same, and sizes wherever both are fixed."""
    return (
        got.dtype == needed.dtype
        and len(got.shape) == len(needed.shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(got.shape, needed.shape, strict=True)
        )
    )
