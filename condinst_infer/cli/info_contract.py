"""The contract of one model file: the steps of export/README.md with its numbers put in."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from condinst_infer.config.model import CondInstConfig
from condinst_infer.contract.metadata import KEY, Metadata
from condinst_infer.contract.tensors import (
    TensorSpec,
    contract_inputs,
    contract_outputs,
    output_shapes,
)
from condinst_infer.processing.geometry import placement

_PHOTO = (480, 640)  # height and width of the example
_LABEL, _TEXT = 12, 88  # columns
_SPACE = "\0"  # a space where no line ends

Steps = dict[str, str | list[str]]  # label: a text, or lines


def contract_text(metadata: Metadata, file: str, takes: str | None = None) -> str:
    """The steps from an image to instances, for a person who writes them in another language.

    Args:
        file: the name of the model file.
        takes: the shapes that an engine takes; None for an .onnx file.
    """
    props = f'metadata_props["{KEY}"]' if takes is None else f'{file}.json, props["{KEY}"]'
    steps: Steps = {
        "file": f"{file}: {metadata.describe()}",
        "metadata": f"{props}, contract {metadata.contract}; formulas: export/README.md",
        **_before(metadata),
        **({} if takes is None else {"takes": f"{takes} (images x rows x columns)"}),
        "inputs": _tensors(contract_inputs(metadata)),
        "outputs": _tensors(_with_numbers(contract_outputs(metadata), metadata)),
        **(_tail(metadata.config) if metadata.graph == "detector" else {}),
        **_after(metadata.config),
    }
    return "\n".join(line for label, text in steps.items() for line in _lines(label, text))


def _lines(label: str, text: str | list[str]) -> Iterator[str]:
    lines = wrap(text, _TEXT, break_on_hyphens=False) if isinstance(text, str) else text
    for line in lines:
        yield f"{label:{_LABEL}}{line.replace(_SPACE, ' ')}"
        label = ""


def _before(metadata: Metadata) -> Steps:
    """The steps before the network."""
    config = metadata.config.input
    short, long = config.short_side, config.long_side
    side = f"the shorter side becomes {short}, or less where the longer one would pass {long}"
    if metadata.size is None:
        canvas = f"both sides rounded up to multiples of {config.size_divisor}"
    else:
        canvas = f"{_by(metadata.size)}; an image that is larger is scaled down to fit"
    net_size, placed_on = placement(_PHOTO, config, metadata.size)
    return {
        "image": "8 bits, upright, without alpha; channels B, G, R",
        "size": f"{side} ({config.resize_rule})",
        "canvas": canvas,
        "example": f"rows x columns {_by(_PHOTO)} become {_by(net_size)} on {_by(placed_on)}",
        "resize": "as Pillow's BILINEAR if a side shrinks, else as OpenCV's INTER_LINEAR; "
        "the image lies at the top left, the rest may be anything",
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> list[str]:
    meaning = {
        "image_sizes": "rows and columns of the resized images",
        "num_detections": "the slots that are used",
        "boxes": "x1 y1 x2 y2, pixels of the canvas",
        "masks": "probabilities",
        "candidate_boxes": "x1 y1 x2 y2, pixels of the canvas",
        "semantic": "logits",
    }
    return [
        f"{name:20}{spec}{f'  {meaning[name]}' if name in meaning else ''}"
        for name, spec in specs.items()
    ]


def _with_numbers(specs: Mapping[str, TensorSpec], metadata: Metadata) -> dict[str, TensorSpec]:
    """`specs` with numbers, or what a side is of the canvas, in place of letters."""
    config = metadata.config
    full = metadata.graph == "full"
    stride = config.mask.mask_stride if full else config.mask_feature_stride
    known = output_shapes(metadata, 1, metadata.size or (0, 0))
    numbers: dict[int | str, int | str] = {"N": metadata.batch or "N"}
    if metadata.size is None:
        numbers |= {"M": len(config.strides) * config.detect.pre_nms_topk}
        numbers |= {"h": f"H/{stride}", "w": f"W/{stride}"}
    else:
        numbers |= {
            letter: size
            for name, spec in specs.items()
            for letter, size in zip(spec.shape[1:], known[name][1:], strict=True)
        }
    return {
        name: TensorSpec(spec.dtype, tuple(numbers.get(side, side) for side in spec.shape))
        for name, spec in specs.items()
    }


def _tail(config: CondInstConfig) -> Steps:
    """The steps that a detector graph leaves out."""
    detect, mask = config.detect, config.mask
    widths = [config.mask_layers[0][1], *(outs for outs, _ in config.mask_layers)]
    inputs = [] if mask.coordinates == "none" else [f"{mask.coordinates} coordinates"]
    inputs += [f"{mask.mask_channels} features"] if mask.use_features else []
    nms = f"within a class, above IoU {detect.nms_iou:g}"
    if detect.nms == "mask":
        nms += f", by the masks of the best {config.mask_candidates} ({detect.mask_nms})"
    return {
        "candidates": f"{detect.pre_nms_topk} for each level of strides {_list(config.strides)}; "
        f"mask sizes {_list(config.heads.sizes_of_interest)}; A is the cells of all levels",
        "NMS": f"{nms}; at most {detect.max_detections}",
        "score": "the square root" if detect.score_root else "as it is",
        "mask head": f"{' -> '.join(map(str, widths))}, {config.num_params} parameters: all "
        f"weights, then all biases; inputs: {', '.join(inputs)} at stride "
        f"{config.mask_feature_stride}; logits are enlarged {config.mask_factor} times",
    }


def _after(config: CondInstConfig) -> Steps:
    """The steps after the network."""
    stride, settings = config.mask.mask_stride, config.panoptic
    box = "x * width / columns and y * height / rows of the resized image, clipped to the image"
    if config.detect.nms == "mask":
        box = "the box around each pasted mask"
    steps: Steps = {
        "scores": f"best first, from {config.reported_floor:.4g} to 1; at most "
        f"{config.detect.max_detections} instances",
        "boxes": f"{box}; those without area are left out",
        "masks": f"cell i lies at pixel {stride} * i + {stride // 2} of the canvas; linear between "
        "cells; inside where it exceeds 0.5",
        "classes": _list(_named(config.class_names, config.category_ids, 0)),
    }
    if config.is_panoptic:
        steps["panoptic"] = (
            f"instances from {settings.instance_threshold:g}; dropped if they lose more than "
            f"{settings.overlap_threshold:g} of their area; stuff from "
            f"{settings.stuff_area_limit} pixels"
        )
        steps["stuff"] = _list(_named(settings.stuff_names, settings.stuff_ids, 1))
    return steps


def _named(names: Sequence[str], ids: Sequence[int], first: int) -> list[str]:
    """Number, name and category id of each class."""
    pairs = enumerate(zip(names, ids, strict=True), first)
    texts = (f"{k} {name} ({category})" for k, (name, category) in pairs)
    return [text.replace(" ", _SPACE) for text in texts]


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
