"""int8 that is measured: calibrate, compare with float32, keep layers float that lose too much."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from condinst_infer.contract.metadata import seal
from condinst_infer.errors import InputError, ParityError
from condinst_infer.evaluation.average_precision import LabelledImages, evaluate
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import CondInst
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.preprocess import ImageSource
from condinst_infer.quantization.agreement import (
    Agreement,
    Feeds,
    Reference,
    agreement,
    disagreement_percent,
    feeds_of,
    spread,
)
from condinst_infer.quantization.qdq import Quantizer
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.system.progress import progress
from condinst_infer.system.timing import time_interleaved
from condinst_infer.verification import self_test
from condinst_infer.verification.check_export import verify_export

KEY = "condinst_int8"  # the report among the metadata of an int8 file
LIMIT = 64  # images; the ranges of 8 gave masks as good as those of 32
MAX_DISAGREEMENT = 5.0  # percent
MAX_AP_DROP = 0.5  # points
_RANKED_ON = 4  # images, those that lose most, say which layers are to blame
_REPEATS = 5  # runs of each file, alternating, say which is faster


@dataclass(frozen=True)
class Int8Report:
    """Measurements of a model in int8."""

    target: str
    images: int
    layers: int  # convolutions and sums that could be int8
    float_layers: tuple[str, ...]  # and stayed float32, because int8 loses too much there
    agreement: Agreement  # with float32
    mask_ap: tuple[float, float] | None  # of float32 and of int8, where there are annotations
    bytes: tuple[int, int]  # of the float32 and of the int8 file
    milliseconds: tuple[float, float] | None  # of one image here, for the target "cpu"

    def to_dict(self) -> dict[str, Any]:
        """This as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        found = self.agreement
        megabytes = [count / 1e6 for count in self.bytes]
        lines = [
            f"int8 for {self.target}, beside float32 on {self.images} images",
            f"differs:     {found.disagreement_percent:.2f} % of the detections, weighed by score",
            f"masks:       mean IoU {found.mask_iou:.4f}, {100 * found.above_09:.1f} % above 0.9",
            f"detections:  {found.detections} in float32, {found.lost} lost, {found.new} new",
            f"stay float:  {len(self.float_layers)} of {self.layers} layers"
            + "".join(f"\n             {name}" for name in self.float_layers),
            f"size:        {megabytes[1]:.1f} MB, float32 {megabytes[0]:.1f} MB",
        ]
        if self.mask_ap is not None:
            lines.insert(2, "mask AP:     {1:.2f}, float32 {0:.2f}".format(*self.mask_ap))
        if self.milliseconds is not None:
            fp32, int8 = self.milliseconds
            verdict = f"{fp32 / int8:.2f} times as fast" if int8 < fp32 else "NOT FASTER, use fp32"
            lines.append(f"speed here:  {int8:.0f} ms, float32 {fp32:.0f} ms: {verdict}")
        return "\n".join(lines)


def export_int8(
    model: CondInst,
    path: str | Path,
    images: Sequence[ImageSource],
    *,
    target: str = "cpu",
    graph: str = "full",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    limit: int = LIMIT,
    truth: LabelledImages | None = None,
    max_accuracy_drop: float | None = None,
    checkpoint_sha256: str = "",
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Int8Report:
    """Write `model` to `path` in int8, and measure what that costs.

    The ranges of the activations come from `images`. Where int8 differs from float32 by more than
    `max_accuracy_drop`, the layers that cost most, each tried alone, stay float32 until it does
    not. The report and the self-test go into the file.

    Args:
        images: what the model will see: files, BGR uint8 arrays or Pillow images.
        target: "cpu" (ONNX Runtime, OpenVINO) or "tensorrt".
        graph, size, batch, checkpoint_sha256, on_stage: as in `export_onnx`.
        limit: images that are used at most, spread over all.
        truth: annotated images; the loss is then that of mask AP.
        max_accuracy_drop: points of mask AP with `truth` (default 0.5), else
            `Agreement.disagreement_percent` (default 5).

    Raises:
        InputError: an image can't be read, there is none, or the model finds nothing in any.
        ParityError: int8 loses more even with half of the layers in float32; nothing is written.
    """
    if not images:
        raise InputError("int8 needs images to calibrate on, and there are none.")
    default = MAX_DISAGREEMENT if truth is None else MAX_AP_DROP
    bound = default if max_accuracy_drop is None else max_accuracy_drop
    feeds = feeds_of(spread(images, limit), model.config.input, size)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = {"size": size, "checkpoint_sha256": checkpoint_sha256, "on_stage": on_stage}
        work = _LayerSearch(model, folder, feeds, target, truth, options)
        on_stage("choosing layers")
        layers = work.layers_within(bound)
        work.write(path, layers, graph, batch)
        on_stage("self-test")
        with closing(OrtSession(path)) as session:
            self_test.store(Path(path), session, session)
        report = work.report(layers, Path(path))
    proto = onnx.load(str(path))
    for key, value in seal(KEY, report).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, str(path))
    return report


class _LayerSearch:
    """The float32 export of a model in a folder, and int8 variants measured beside it."""

    def __init__(
        self,
        model: CondInst,
        folder: Path,
        feeds: Sequence[Feeds],
        target: str,
        truth: LabelledImages | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.feeds, self.truth, self.target = model, feeds, truth, target
        self.options = options  # of `export_onnx`
        self.float32, self.int8 = folder / "float32.onnx", folder / "int8.onnx"
        self.quantizer = self._quantizer(self.float32, feeds, "full", None)
        self.reference = Reference(self.float32, feeds)
        self.mask_ap = None if truth is None else _mask_ap(truth, self.float32)

    def _quantizer(
        self, path: Path, feeds: Sequence[Feeds], graph: str, batch: int | None
    ) -> Quantizer:
        export_onnx(self.model, path, graph=graph, batch=batch, **self.options)
        self.options["on_stage"]("checking")
        verify_export(self.model, path)
        self.options["on_stage"]("calibrating")
        bar = progress(feeds, "image", description="calibrating")
        return Quantizer(path, bar, target=self.target)

    def accuracy_drop(self, layers: Sequence[str]) -> float:
        """The cost of int8 in `layers` alone: points of mask AP, or percent."""
        self.quantizer.write(self.int8, layers)
        if self.truth is not None and self.mask_ap is not None:
            return self.mask_ap - _mask_ap(self.truth, self.int8)
        return disagreement_percent(self.reference.compare(self.int8))

    def layers_within(self, bound: float) -> tuple[str, ...]:
        """The layers that can be int8 without losing more than `bound`."""
        layers = self.quantizer.layers
        drop = self.accuracy_drop(layers)
        if drop <= bound:
            return layers
        worst = self._by_cost()
        count = fewest(
            lambda n: self.accuracy_drop(_without(layers, worst[:n])) <= bound, len(layers) // 2
        )
        if count is None:
            what = "percent of what float32 finds" if self.truth is None else "points of mask AP"
            raise ParityError(
                f"int8 loses {drop:.2f} {what} here, and more than the {bound:g} allowed even with "
                "half of the layers in float32; nothing was written. Calibrate on images like "
                "those it will see, or allow more: --max-accuracy-drop"
            )
        return _without(layers, worst[:count])

    def _by_cost(self) -> list[str]:
        """The layers, the one that costs most alone first."""
        self.quantizer.write(self.int8)
        weights = [image.disagreeing_weight for image in self.reference.compare(self.int8)]
        images = np.argsort(weights)[::-1][:_RANKED_ON].tolist()
        costs = {}
        for layer in progress(self.quantizer.layers, "layer", description="ranking layers"):
            self.quantizer.write(self.int8, [layer])
            costs[layer] = disagreement_percent(self.reference.compare(self.int8, images))
        return sorted(costs, key=costs.__getitem__, reverse=True)

    def write(self, path: str | Path, layers: Sequence[str], graph: str, batch: int | None) -> None:
        """The file that was asked for; another cut or batch has ranges of its own."""
        self.quantizer.write(self.int8, layers)
        quantizer = self.quantizer
        if graph != "full" or batch is not None:
            repeated = [
                {name: value.repeat(batch or 1, 0) for name, value in feed.items()}
                for feed in self.feeds
            ]
            quantizer = self._quantizer(self.float32.with_stem("cut"), repeated, graph, batch)
        quantizer.write(path, layers)

    def report(self, layers: Sequence[str], path: Path) -> Int8Report:
        """Summarise the int8 file `path`, measured on the full graph."""
        return Int8Report(
            target=self.target,
            images=len(self.feeds),
            layers=len(self.quantizer.layers),
            float_layers=_without(self.quantizer.layers, layers),
            agreement=agreement(self.reference.compare(self.int8)),
            mask_ap=None
            if self.truth is None or self.mask_ap is None
            else (self.mask_ap, _mask_ap(self.truth, self.int8)),
            bytes=(self.float32.stat().st_size, path.stat().st_size),
            milliseconds=self._milliseconds() if self.target == "cpu" else None,
        )

    def _milliseconds(self) -> tuple[float, float]:
        """Medians of float32 and int8 on the first image, in ONNX Runtime."""
        with closing(OrtSession(self.float32)) as a, closing(OrtSession(self.int8)) as b:
            feed = self.feeds[0]
            both = {"float32": lambda: a.run(feed), "int8": lambda: b.run(feed)}
            times = time_interleaved(both, repeats=_REPEATS)
        return float(np.median(times["float32"])), float(np.median(times["int8"]))


def _mask_ap(truth: LabelledImages, path: Path) -> float:
    """Mask AP of the exported file `path`, with as many detections as it reports."""
    with Pipeline(OrtSession(path)) as pipeline:
        most = pipeline.config.detect.max_detections
        result = evaluate(
            pipeline, truth.annotations, truth.images, max_detections=most, limit=truth.limit
        )
    if result.mask["AP"] is None:
        raise InputError(f"{truth.annotations} has no objects on its first {truth.limit} images.")
    return result.mask["AP"]


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest count from 1 to `most` that is `enough`; None if none is.

    Doubles, then halves the gap: what is enough is taken to stay so with more.
    """
    low, high = 0, 1
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _without(layers: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    return tuple(layer for layer in layers if layer not in left_out)
