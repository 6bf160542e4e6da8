"""Proof that an exported file computes what its network does."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import torch

from condinst_infer import ops
from condinst_infer.config.model import CondInstConfig
from condinst_infer.errors import ParityError
from condinst_infer.model.condinst import CondInst
from condinst_infer.verification import self_test
from condinst_infer.verification.compare import (
    DETECTION_ROWS,
    LIMITS,
    ComparisonReport,
    ComparisonRow,
    feeds_for,
    precision_of,
    report_on,
)
from condinst_infer.verification.intermediates import (
    Intermediates,
    OnnxIntermediates,
    TorchIntermediates,
    has_candidates,
    lift_for,
)

_NOTHING_COMPARED = (
    "NMS and mask heads could not be compared: the network finds nothing in the inputs of the "
    "check, even with its scores raised. Look at its results in PyTorch first: "
    "condinst predict MODEL.safetensors IMAGE"
)


@dataclass(frozen=True)
class ExportReport(ComparisonReport):
    """A report on an exported file beside the network it came from."""

    lifted: bool = False  # no class reached the threshold, so scores were raised for NMS and masks
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.lifted:
            lines.append(
                "the network finds nothing in the inputs of the check: NMS and mask heads were "
                "compared with its scores raised"
            )
        return "\n".join(lines)


def verify_export(model: CondInst, path: str | Path) -> ExportReport:
    """Compare the exported file `path` with the network it came from."""
    return compare_intermediates(TorchIntermediates(model), OnnxIntermediates(Path(path)))


def finish_export(
    model: CondInst, path: str | Path, *, on_stage: Callable[[str], object] = lambda stage: None
) -> ExportReport:
    """Verify the exported file `path`, and store the self-test of the network in it.

    Args:
        on_stage: called with the name of each stage of the work when it begins.

    Raises:
        ParityError: as `compare_intermediates`.
    """
    on_stage("checking")
    ours, theirs = TorchIntermediates(model), OnnxIntermediates(Path(path))
    report = compare_intermediates(ours, theirs)
    on_stage("self-test")
    self_test.store(Path(path), ours, theirs)
    return report


def compare_intermediates(ours: TorchIntermediates, theirs: OnnxIntermediates) -> ExportReport:
    """Compare the stages of an exported file with those of the network it came from.

    Runs two inputs of different size and batch, where the file is not static. Where the network
    finds nothing in either, both come again with raised scores, so that NMS and mask heads have
    something to do.

    Raises:
        ParityError: a stage is past its limit; the text names it.
    """
    config = ours.metadata.config
    runs, lifted_runs = [], []
    for feeds in feeds_for(ours.metadata, theirs.metadata, ()):
        runs.append((ours.run(feeds), theirs.run(feeds)))
        if not any(has_candidates(stages) for pair in runs for stages in pair):
            lift = lift_for(runs[-1][0], config.detect)
            lifted_runs.append((ours.run_with_lift(feeds, lift), theirs.run_with_lift(feeds, lift)))
    lifted = len(lifted_runs) == len(runs)
    if lifted:
        runs += lifted_runs
    report = report_on(runs, precision_of(ours, theirs))
    # an untrained network is full of ties, and a tie may go either way: instead of the detections,
    # NMS and mask heads are judged on the very inputs that the file gave them
    rows = [r if r.stage not in DETECTION_ROWS else replace(r, limit=inf) for r in report.rows]
    if theirs.metadata.graph == "full":
        rows += _own_rows(ours.model, runs, report.precision)
    warnings = () if _any_detections(runs) else (_NOTHING_COMPARED,)
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    checked = ExportReport(**{**fields, "rows": tuple(rows)}, lifted=lifted, warnings=warnings)
    if not checked.ok:
        worst = next(row for row in checked.rows if not row.ok)
        raise ParityError(
            f"the exported graph does not compute what the network does: {worst.stage} differs by "
            f"{worst.difference:.3g} {worst.unit}, allowed are {worst.limit:.3g}. "
            "Nothing was written."
        )
    return checked


def _any_detections(runs: Sequence[tuple[Intermediates, Intermediates]]) -> bool:
    """True if NMS and mask heads, or the candidates of a detector graph, had anything to do."""
    return any(
        bool(theirs["num_detections"].any()) if "num_detections" in theirs else has_candidates(ours)
        for ours, theirs in runs
    )


def _own_rows(
    model: CondInst, runs: Sequence[tuple[Intermediates, Intermediates]], precision: str
) -> list[ComparisonRow]:
    """NMS, gathering and mask heads of an exported full graph on its own inputs.

    Args:
        model: the network in PyTorch, which says what they should be.
        runs: its stages and those of the file, per input.
    """
    limits, worst = LIMITS[precision], dict[str, float]()
    for ours, theirs in runs:
        apart = {
            "nms": _nms_apart(model.config, theirs),
            "outputs": _outputs_apart(model.config, theirs),
            "params": _params_apart(model.config, ours, theirs),
            **_masks_apart(model.config, theirs),
        }
        worst = {n: float(np.maximum(value, worst.get(n, 0.0))) for n, value in apart.items()}
    # a runtime may keep halved masks in float32 inside, where a pixel that was rounded to 0.5 has
    # another side, and its overlap another score
    by_halved_masks = precision == "fp16" and model.config.detect.nms == "mask"
    rows = {
        "nms": (limits.unmatched if by_halved_masks else 0.0, "of the slots differ"),
        "outputs": (1e-6, "pixels, score or label"),
        "params": (limits.tensor, "of the largest value"),
        "candidate_masks": (limits.mask, "mean probability"),
        "mask_heads": (limits.mask, "mean probability"),
    }
    return [ComparisonRow(name, worst[name], *rows[name]) for name in worst]


def _nms_apart(config: CondInstConfig, theirs: Intermediates) -> float:
    """Share of slots in which the file's NMS kept something else of its candidates."""
    detect = config.detect
    first = "candidate_boxes" if detect.nms == "box" else "candidate_masks"
    given = [torch.from_numpy(theirs[n]) for n in (first, "candidate_scores", "candidate_labels")]
    settings = {"iou_threshold": detect.nms_iou, "max_detections": detect.max_detections}
    if detect.nms == "box":
        keep, _ = ops.class_nms(*given, **settings)
        return float((keep.numpy() != theirs["keep"]).mean())
    keep, scores, _ = ops.mask_nms(
        *given, **settings, kind=detect.mask_nms, score_threshold=detect.score_threshold
    )
    # a decayed score is two divisions, which a runtime may turn into products
    apart = np.abs(scores.numpy() - theirs["kept_scores"]) > 1e-6
    return float((apart | (keep.numpy() != theirs["keep"])).mean())


def _masks_apart(config: CondInstConfig, theirs: Intermediates) -> dict[str, float]:
    """Mean differences of what the mask heads of the file make of their inputs."""
    settings = config.mask_head_settings
    nodes = {"mask_heads": ("", "num_detections", "masks", settings)}
    if config.detect.nms == "mask":
        settings = settings | {"factor": 1}
        nodes["candidate_masks"] = ("candidate_", "candidate_count", "candidate_masks", settings)
    apart = {}
    for stage, (of, count, masks, settings) in nodes.items():
        names = ("mask_features", f"{of}params", f"{of}centres", f"{of}sizes", count)
        inputs = (torch.from_numpy(theirs[name]) for name in names)
        expected = ops.dynamic_mask_head(*inputs, **settings).float().numpy()
        apart[stage] = _mean_apart(expected, theirs[masks], theirs[f"{of}scores"] > 0)
    return apart


def _mean_apart(expected: np.ndarray, found: np.ndarray, real: np.ndarray) -> float:
    """Mean difference of probabilities over the masks that are not empty slots.

    The mean, because a runtime may keep halved features in float32 inside, and the steepest
    pixels then move by a tenth.
    """
    apart = np.abs(expected - found.astype(np.float32))
    return float(max(apart[real].mean() if real.any() else 0, apart[~real].max(initial=0)))


def _outputs_apart(config: CondInstConfig, theirs: Intermediates) -> float:
    """Differences of boxes, scores and labels from the candidates that the file's own NMS kept."""
    keep = theirs["keep"].astype(int)
    slot, real = keep.clip(0), keep >= 0
    if config.detect.nms == "box":
        boxes = np.take_along_axis(theirs["candidate_boxes"], slot[:, :, None], 1)
        scores = np.take_along_axis(theirs["candidate_scores"], slot, 1).clip(0)
    else:
        masks = torch.from_numpy(theirs["masks"])
        boxes = ops.boxes_from_masks(masks, config.mask.mask_stride).numpy()
        scores = theirs["kept_scores"]
    scores = np.sqrt(scores) if config.detect.score_root else scores
    labels = np.take_along_axis(theirs["candidate_labels"], slot, 1)
    expected = {
        "boxes": np.where(real[:, :, None], boxes, 0),
        "scores": np.where(real, scores, 0),
        "labels": np.where(real, labels, -1),
        "num_detections": real.sum(1),
    }
    return max(float(np.abs(value - theirs[name]).max()) for name, value in expected.items())


def _params_apart(config: CondInstConfig, ours: Intermediates, theirs: Intermediates) -> float:
    """Differences of the gathered parameters from the dense map's at the same places."""
    height, width = (config.mask_feature_stride * n for n in theirs["mask_features"].shape[2:])
    map_, offset, worst = ours["params_map"], 0, 0.0
    scale = max(float(np.abs(map_).max()), 1e-6)
    for stride, size in zip(config.strides, config.heads.sizes_of_interest, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        for i, count in enumerate(theirs["num_detections"]):
            here = theirs["sizes"][i, :count] == size
            cell = (theirs["centres"][i, :count][here] // stride).astype(int)  # column, row
            expected = map_[i][:, offset + cell[:, 1] * columns + cell[:, 0]].T
            apart = np.abs(theirs["params"][i, :count][here].astype(np.float32) - expected)
            worst = max(worst, float(apart.max(initial=0.0)) / scale)
        offset += rows * columns
    return worst
