"""A self-test stored in the exported file: reference outputs for a generated input.

Where there is no PyTorch, a runtime or a freshly built engine runs the same input, and its outputs
are compared with those that PyTorch computed at export.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from condinst_infer.config.field_types import dataclass_from_json
from condinst_infer.config.model import MAX_PIXELS
from condinst_infer.contract.metadata import Metadata, is_unbroken, seal
from condinst_infer.contract.session import Session
from condinst_infer.contract.tensors import contract_outputs
from condinst_infer.errors import ConfigError, ModelFileError, ParityError, require, shorten
from condinst_infer.system.json_text import parse_json
from condinst_infer.trt.shape_profile import Shape, typical_canvas
from condinst_infer.verification.compare import Tolerances, limits_of

KEY = "condinst_golden"  # in the metadata of files
# columns of a row: label, score, box, mean of the mask if there is one
_LABEL, _SCORE, _BOX, _MASK = 0, 1, slice(2, 6), slice(6, None)
ROWS = 100  # detections kept of all images, the best of each: a few kilobytes
PICTURES = 4  # tried until one shows the network something
TIES = 0.1  # share of detections that may go the other way at a tie; a defect moves more

_TENSORS = ("params_map", "mask_features", "semantic")


@dataclass(frozen=True)
class SelfTest:
    """The input, by the numbers it is made of, and the outputs, as far as they are compared."""

    shape: Shape  # images, height, width
    picture: int
    input_sha256: str
    counts: tuple[int, ...]  # detections per image; candidates of a detector graph
    rows: tuple[tuple[tuple[float, ...], ...], ...]  # label, score, box, mean of the mask if any
    tensors: Mapping[str, tuple[float, float, float]]  # mean, deviation, largest magnitude
    tied: bool = False  # another runtime found other detections: only the best score is compared

    def feeds(self) -> dict[str, np.ndarray]:
        """The input."""
        feeds = _generate_input(self.shape, self.picture)
        if _digest(feeds) != self.input_sha256:
            raise ParityError("the input of the self-test comes out differently on this machine.")
        return feeds

    @property
    def proof(self) -> str:
        """Meaning of an agreement, in words."""
        if self.tied:
            return "on the best score alone: other detections of this network depend on rounding"
        return f"on {sum(self.counts) or 'an image without'} detections"

    def to_props(self) -> dict[str, str]:
        """This as ONNX metadata_props; the digest shows later tampering."""
        return seal(KEY, self)


def self_test_from_props(props: Mapping[str, str], path: object) -> SelfTest | None:
    """The self-test in the metadata of the file `path`; None if it was exported without.

    Raises:
        ModelFileError: changed since the export.
    """
    if KEY not in props:
        return None
    if not is_unbroken(KEY, props):
        raise ModelFileError(f"the self-test in {path} was changed after export.")
    try:
        data = parse_json(props[KEY], f"the self-test in {path}", ModelFileError)
        found = dataclass_from_json(data, SelfTest, "self-test", optional=("tied",))
        _check_ranges(found)
        return found
    except ConfigError as error:
        raise ModelFileError(f"the self-test in {path} can't be read: {error}") from None


def _check_ranges(found: SelfTest) -> None:
    """ConfigError for values that don't fit each other, or an input larger than any photograph."""
    images = found.shape[0]
    if min(found.shape) < 1 or prod(found.shape) > MAX_PIXELS:
        raise ConfigError(
            f"self-test.shape is {list(found.shape)}; it must be sizes from 1, with at most "
            f"{MAX_PIXELS} pixels."
        )
    if not 0 <= found.picture < PICTURES:
        raise ConfigError(f"self-test.picture is {found.picture}; it must be below {PICTURES}.")
    if len(found.counts) != images or len(found.rows) != images:
        raise ConfigError(f"self-test.counts and rows need {images} entries each.")
    for count, rows in zip(found.counts, found.rows, strict=True):
        lengths = {len(row) for row in rows}
        if not (len(rows) <= count and lengths <= {6, 7} and len(lengths) <= 1):
            raise ConfigError(f"self-test.rows has rows of {sorted(lengths)} numbers for {count}.")
    if unknown := sorted(set(found.tensors) - set(_TENSORS)):
        raise ConfigError(f"self-test.tensors has the unknown tensor {shorten(unknown[0])}.")


def store(path: Path, network: Any, session: Any) -> SelfTest:
    """Add to the exported file `path` what its network computes.

    Where the file itself finds other detections, though it was verified, the network is full of
    ties, and the self-test says so.

    Args:
        network: its `run` gives the outputs: the stages of the network in PyTorch. An int8 file is
            a network of its own: there it is `session`.
        session: the file in ONNX Runtime.
    """
    onnx = require("onnx", "export")
    self_test = self_test_of(network, session.metadata)
    try:
        check(session, self_test)
    except ParityError:
        self_test = replace(self_test, tied=True)
    proto = onnx.load(str(path))
    for key, value in self_test.to_props().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, str(path))
    return self_test


def self_test_of(network: Any, metadata: Metadata) -> SelfTest:
    """Run `network` on a generated input; returns the self-test for the file with this metadata.

    The input is static or as large as a photograph usually gets: within what an engine takes.
    """
    canvas = metadata.size or typical_canvas(metadata.config.input)
    shape = (metadata.batch or 1, *canvas)
    picture = 0
    outputs = network.run(_generate_input(shape, picture))
    while not _any_rows(outputs, metadata.graph) and picture + 1 < PICTURES:
        picture += 1
        outputs = network.run(_generate_input(shape, picture))
    found = [_rows(outputs, metadata.graph, i) for i in range(shape[0])]
    tensors = [name for name in _TENSORS if name in contract_outputs(metadata)]
    return SelfTest(
        shape=shape,
        picture=picture,
        input_sha256=_digest(_generate_input(shape, picture)),
        counts=tuple(map(len, found)),
        rows=tuple(_round_rows(rows[: max(1, ROWS // shape[0])]) for rows in found),
        tensors={name: _statistics(outputs[name]) for name in tensors},
    )


def check(session: Session, self_test: SelfTest) -> None:
    """ParityError, with all differences, if `session` computes something else than `self_test`."""
    metadata = session.metadata
    limits = limits_of(metadata.config, metadata.precision)
    _check_fits(self_test, metadata)
    outputs = session.run(self_test.feeds())
    wrong = []
    for i, (count, rows) in enumerate(zip(self_test.counts, self_test.rows, strict=True)):
        found = _rows(outputs, metadata.graph, i)
        expected = np.array(rows).reshape(len(rows), found.shape[1])
        said = _best_differs if self_test.tied else _detections_differ
        wrong += [f"{text} in image {i}" for text in said(count, expected, found, limits)]
    for name, (mean, deviation, largest) in self_test.tensors.items():
        allowed = limits.tensor * largest
        apart = np.abs(np.subtract(_statistics(outputs[name])[:2], (mean, deviation))).max()
        if not apart <= allowed:  # also where it is not a number
            wrong.append(f"mean or deviation of {name} is off by {apart:.3g}, not {allowed:.3g}")
    if wrong:
        whose = "ONNX Runtime" if metadata.precision == "int8" else "PyTorch"
        raise ParityError(f"the outputs are not those {whose} had at export: {'; '.join(wrong)}.")


def _check_fits(self_test: SelfTest, metadata: Metadata) -> None:
    """ModelFileError if the self-test is that of another file than `metadata`."""
    (images, *canvas), divisor = self_test.shape, metadata.config.input.size_divisor
    needed = 7 if metadata.graph == "full" else 6
    fits = (
        metadata.batch in (None, images)
        and metadata.size in (None, tuple(canvas))
        and not any(side % divisor for side in canvas)
        and all(len(row) == needed for rows in self_test.rows for row in rows)
        and set(self_test.tensors) <= set(contract_outputs(metadata))
    )
    if not fits:
        raise ModelFileError("the self-test is that of another file: its shapes don't fit.")


def _detections_differ(
    count: int, expected: np.ndarray, found: np.ndarray, limits: Tolerances
) -> list[str]:
    """The kinds of differences in more detections than ties explain."""
    share = max(limits.unmatched, TIES)
    wrong = []
    if abs(len(found) - count) > share * max(count, len(found)):
        wrong.append(f"there are {len(found)} detections, not {count}")
    apart = _differences(expected, found)
    missing = np.isinf(apart[:, 0])
    if missing.sum() > share * len(expected):
        wrong.append(f"{missing.sum()} of {len(expected)} detections have no partner of that class")
    kinds = [("scores", limits.score, ""), ("boxes", limits.box, " pixels")]
    kinds.append(("mean mask probabilities", limits.mask, ""))
    for (name, limit, unit), values in zip(kinds, apart[~missing].T, strict=False):
        if (~(values <= limit)).sum() > share * len(expected):
            wrong.append(f"{name} are off by up to {values.max():.3g}{unit}, not {limit:.3g}")
    return wrong


def _differences(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Differences of each row from its partner: score, box, mask; infinite where it has none.

    Partners have one class; the nearest boxes of all find each other first, so that one row
    that is far off takes no other's partner.
    """
    differences = np.full((len(expected), expected.shape[1] - 4), np.inf)
    distances = np.abs(expected[:, None, _BOX] - found[None, :, _BOX]).max(2)
    same_class = expected[:, None, _LABEL] == found[None, :, _LABEL]
    distances = np.where(np.isfinite(distances) & same_class, distances, np.inf)
    while np.isfinite(distances).any():
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        score = abs(found[j, _SCORE] - expected[i, _SCORE])
        mask = np.abs(found[j, _MASK] - expected[i, _MASK])
        differences[i] = [score, distances[i, j], *mask]
        distances[i], distances[:, j] = np.inf, np.inf
    return differences


def _best_differs(
    count: int, expected: np.ndarray, found: np.ndarray, limits: Tolerances
) -> list[str]:
    """The differences that ties leave out: none at all, or another best score."""
    ours, theirs = (float(rows[:1, 1].sum()) for rows in (expected, found))
    if abs(ours - theirs) <= limits.score:
        return []
    return [f"the best score is {theirs:.4f}, not {ours:.4f}"]


def _rows(outputs: Mapping[str, np.ndarray], graph: str, i: int) -> np.ndarray:
    """Detections or candidates of image `i`, best first: label, score, box, mean of the mask."""
    if graph == "full":
        n = int(outputs["num_detections"][i])
        labels, scores, boxes = (outputs[name][i, :n] for name in ("labels", "scores", "boxes"))
        means = outputs["masks"][i, :n].mean((1, 2), dtype=np.float64)
        rows = np.column_stack([labels, scores, boxes, means])
    else:
        # without boxes, the location has to tell candidates of a class apart
        boxes = outputs.get("candidate_boxes", outputs["candidate_locations"][:, :, None])[i]
        columns = [outputs[name][i] for name in ("candidate_labels", "candidate_scores")]
        rows = np.column_stack([*columns, np.broadcast_to(boxes, (len(boxes), 4))])
        rows = rows[rows[:, 1] > 0]
    return rows[np.argsort(-rows[:, 1], kind="stable")]


def _any_rows(outputs: Mapping[str, np.ndarray], graph: str) -> bool:
    images = next(iter(outputs.values())).shape[0]
    return any(len(_rows(outputs, graph, i)) for i in range(images))


def _round_rows(rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Boxes to a thousandth of a pixel, the rest to a millionth."""
    digits = [0, 6, 3, 3, 3, 3, 6]
    return tuple(
        tuple(round(value, n) for value, n in zip(row, digits, strict=False))
        for row in rows.tolist()
    )


def _statistics(values: np.ndarray) -> tuple[float, float, float]:
    wide = values.astype(np.float64)
    return float(wide.mean()), float(wide.std()), float(np.abs(wide).max())


def _generate_input(shape: Shape, picture: int) -> dict[str, np.ndarray]:
    """Network input with coloured discs, from whole numbers only: the same on every machine."""
    n, height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.int64)
    state = picture + 1

    def below(limit: int) -> int:
        nonlocal state
        state = (1103515245 * state + 12345) % 2**31  # the generator of the C standard's example
        return (state >> 8) % limit

    images = np.zeros((n, height, width, 3), np.uint8)
    sizes = np.empty((n, 2), np.int32)
    for i, image in enumerate(images):
        image[...] = (5 * x + 3 * y)[:, :, None] % 16 + [below(64) for _ in range(3)]
        for _ in range(24):
            middle, radii = (below(height), below(width)), [8 + below(height // 6) for _ in "yx"]
            inside = ((y - middle[0]) * radii[1]) ** 2 + ((x - middle[1]) * radii[0]) ** 2
            image[inside <= (radii[0] * radii[1]) ** 2] = [64 + below(192) for _ in range(3)]
        sizes[i] = max(1, height - 7 * i), max(1, width - 11 * i)
    return {"images": images, "image_sizes": sizes}


def _digest(feeds: Mapping[str, np.ndarray]) -> str:
    content = b"".join(array.tobytes() for _, array in sorted(feeds.items()))
    return hashlib.sha256(content).hexdigest()
