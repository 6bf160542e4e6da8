"""PQ beside a computation mask by mask, and in cases that can be worked out by hand."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from condinst_infer.datasets.coco_panoptic import PanopticTruth, id_map, read_panoptic
from condinst_infer.evaluation.panoptic_quality import (
    PanopticQuality,
    PredictedSegments,
    count_matches,
    evaluate_panoptic_file,
    quality,
)
from condinst_infer.processing.panoptic_merge import merge
from condinst_infer.results.crop import CroppedMask
from tests.support.panoptic_files import Segment, made_up, noisy, segment, write_panoptic

SIX = Path(__file__).parents[1] / "data" / "panoptic6" / "panoptic.json"
Pair = tuple[np.ndarray, list[Segment]]


@pytest.fixture
def judged(tmp_path: Path) -> Callable[[list[Pair], list[Pair]], PanopticQuality]:
    """Writes the truth and what was found, and gives the quality."""

    def judge(truth: list[Pair], found: list[Pair]) -> PanopticQuality:
        read = read_panoptic(write_panoptic(tmp_path / "truth.json", truth))
        return evaluate_panoptic_file(read, write_panoptic(tmp_path / "found.json", found))

    return judge


def straightforward(pairs: list[tuple[Pair, Pair]]) -> dict[int, tuple[float, int, int, int]]:
    """Sum of IoUs, matched, missed and wrong of each category, mask by mask."""
    ious: Counter[int] = Counter()
    matched, missed, wrong = Counter(), Counter(), Counter()
    for (ids, segments), (found, found_segments) in pairs:
        void = ids == 0
        taken = set()
        for info in segments:
            if info["iscrowd"]:
                continue
            mask = ids == info["id"]
            for other in found_segments:
                guess = (found == other["id"]) & ~void
                iou = (mask & guess).sum() / (mask | guess).sum()
                if other["category_id"] == info["category_id"] and iou > 0.5:
                    taken.add(other["id"])
                    ious[info["category_id"]] += iou
                    matched[info["category_id"]] += 1
                    break
            else:
                missed[info["category_id"]] += 1
        for other in found_segments:
            guess = found == other["id"]
            ignored = void.copy()
            for info in segments:
                if info["iscrowd"] and info["category_id"] == other["category_id"]:
                    ignored |= ids == info["id"]
            if other["id"] not in taken and (guess & ignored).sum() / guess.sum() <= 0.5:
                wrong[other["category_id"]] += 1
    return {
        id_: (ious[id_], matched[id_], missed[id_], wrong[id_])
        for id_ in {*matched, *missed, *wrong}
    }


def test_noisy_segments_are_judged_as_mask_by_mask(
    judged: Callable[[list[Pair], list[Pair]], PanopticQuality],
) -> None:
    truth = [made_up(seed) for seed in range(12)]
    found = [noisy(*pair, seed) for seed, pair in enumerate(truth)]
    assert_as_straightforward(judged(truth, found), list(zip(truth, found, strict=True)))


def test_noise_on_photographs_is_judged_as_mask_by_mask() -> None:
    truth = read_panoptic(SIX)
    total, pairs = np.zeros((4, len(truth.categories))), []
    kinds = list(truth.categories)
    for image in truth.images:
        ids = id_map(image)
        segments = [segment(s.id, s.category, int(s.crowd)) for s in image.segments]
        found, guesses = noisy(ids, segments, image.id)
        for info in guesses:  # categories of this file, of which not all are those of the noise
            if info["category_id"] not in truth.categories:
                info["category_id"] = kinds[info["category_id"] % len(kinds)]
        pairs.append(((ids, segments), (found, guesses)))
        total += count_matches(
            truth, image, PredictedSegments(found, {g["id"]: g["category_id"] for g in guesses})
        )
    assert_as_straightforward(quality(truth, total), pairs)


def assert_as_straightforward(result: PanopticQuality, pairs: list[tuple[Pair, Pair]]) -> None:
    expected = straightforward(pairs)
    assert {c.id for c in result.classes} == set(expected)
    means = {True: [], False: []}
    for c in result.classes:
        iou, matched, missed, wrong = expected[c.id]
        assert (c.matched, c.missed, c.wrong) == (matched, missed, wrong)
        sq, rq = iou / max(matched, 1), matched / (matched + missed / 2 + wrong / 2)
        numbers = {"PQ": 100 * sq * rq, "SQ": 100 * sq, "RQ": 100 * rq}
        assert c.quality == pytest.approx(numbers, abs=1e-9)
        means[c.is_thing].append(list(numbers.values()))
    for numbers, rows in (
        (result.things, means[True]),
        (result.stuff, means[False]),
        (result.all, means[True] + means[False]),
    ):
        assert list(numbers.values()) == pytest.approx(np.mean(rows, 0).tolist(), abs=1e-9)
        assert 20 < (numbers["PQ"] or 0) < 90  # else the comparison would show nothing
    assert min(sum(column) for column in list(zip(*expected.values(), strict=True))) > 1


def test_the_ground_truth_is_perfect(
    judged: Callable[[list[Pair], list[Pair]], PanopticQuality],
) -> None:
    truth = [made_up(seed) for seed in range(4)]
    result = judged(truth, truth)
    perfect = {"PQ": pytest.approx(100), "SQ": pytest.approx(100), "RQ": pytest.approx(100)}
    assert result.all == result.things == result.stuff == perfect
    assert result.images == 4 and {c.wrong + c.missed for c in result.classes} == {0}


ROW = np.arange(20)[None]  # an image of one row of 20 pixels


def strip(**parts: tuple[int, int]) -> np.ndarray:
    """Ids of ROW: `strip(_7=(0, 5))` has the id 7 in the first five pixels."""
    ids = np.zeros_like(ROW)
    for name, (start, stop) in parts.items():
        ids[:, start:stop] = int(name[1:])
    return ids


@pytest.mark.parametrize(
    ("truth", "segments", "found", "guesses", "expected"),
    [
        # 8 of 12 pixels in common
        (strip(_1=(0, 10), _2=(10, 20)), {1: 2, 2: 3}, strip(_5=(2, 12)), {5: 2}, (2 / 3, 1, 0, 0)),
        # an IoU of one half is none
        (strip(_1=(0, 10), _2=(10, 20)), {1: 2, 2: 3}, strip(_5=(0, 20)), {5: 2}, (0, 0, 1, 1)),
        # void is taken out of the union
        (strip(_1=(0, 10)), {1: 2}, strip(_5=(0, 20)), {5: 2}, (1, 1, 0, 0)),
        # half of it in void is not enough, more is
        (strip(_1=(0, 10), _2=(10, 12)), {1: 3, 2: 2}, strip(_5=(8, 16)), {5: 2}, (0, 0, 1, 1)),
        (strip(_1=(0, 10), _2=(10, 12)), {1: 3, 2: 2}, strip(_5=(8, 17)), {5: 2}, (0, 0, 1, 0)),
        # another class finds nothing
        (strip(_1=(0, 20)), {1: 3}, strip(_5=(0, 20)), {5: 2}, (0, 0, 0, 1)),
        # crowds are never missed; found segments in them are not wrong, of their class only
        (strip(_1=(0, 20)), {1: -2}, strip(_5=(0, 4)), {5: 2}, (0, 0, 0, 0)),
        (strip(_1=(0, 20)), {1: -9}, strip(_5=(0, 4)), {5: 2}, (0, 0, 0, 1)),
        # nor do they match: what fills one is left out of the count
        (strip(_1=(0, 20)), {1: -2}, strip(_5=(0, 20)), {5: 2}, (0, 0, 0, 0)),
        # two crowds and void together are more than half
        (strip(_1=(0, 3), _2=(3, 6), _3=(9, 20)), {1: -2, 2: -2, 3: 3}, strip(_5=(0, 15)), {5: 2},
         (0, 0, 0, 0)),
        # nothing found
        (strip(_1=(0, 20)), {1: 2}, strip(), {}, (0, 0, 1, 0)),
    ],
)  # fmt: skip
def test_cases_worked_out_by_hand(
    judged: Callable[[list[Pair], list[Pair]], PanopticQuality],
    truth: np.ndarray,
    segments: dict[int, int],
    found: np.ndarray,
    guesses: dict[int, int],
    expected: tuple[float, int, int, int],
) -> None:
    infos = [segment(id_, abs(kind), int(kind < 0)) for id_, kind in segments.items()]
    others = [segment(id_, kind) for id_, kind in guesses.items()]
    result = judged([(truth, infos)], [(found, others)])
    own = next((c for c in result.classes if c.id == 2), None)
    if own is None:
        assert expected == (0, 0, 0, 0)
    else:
        iou = (own.quality["SQ"] or 0) * own.matched / 100
        assert (iou, own.matched, own.missed, own.wrong) == pytest.approx(expected)


def test_where_no_category_occurs_nothing_is_defined(
    judged: Callable[[list[Pair], list[Pair]], PanopticQuality],
) -> None:
    result = judged([(strip(_1=(0, 20)), [segment(1, 3)])], [(strip(), [])])
    assert set(result.things.values()) == {None} and result.stuff["PQ"] == 0
    assert [c.name for c in result.classes] == ["stuff 3"]


def merged(truth: PanopticTruth, stuff_area_limit: int) -> PanopticQuality:
    """The quality of the ground truth that went through `merge` as things and stuff."""
    total = np.zeros((4, len(truth.categories)))
    kinds_of_stuff = [c.id for c in truth.categories.values() if not c.is_thing]
    stuff = {id_: channel for channel, id_ in enumerate(kinds_of_stuff, 1)}
    for image in truth.images:
        ids, crops, labels = id_map(image), [], np.zeros(image.size, np.uint8)
        things = [s for s in image.segments if s.category not in stuff]
        for s in image.segments:
            if s.category in stuff:
                labels[ids == s.id] = stuff[s.category]
            else:
                crops.append(CroppedMask(0, 0, ids == s.id))
        owners = merge(crops, labels, overlap_threshold=0.4, stuff_area_limit=stuff_area_limit)
        kinds = dict(enumerate((s.category for s in things), 1))
        kinds |= {len(things) + channel: id_ for id_, channel in stuff.items()}
        shown = set(np.unique(owners).tolist()) - {0}
        found = PredictedSegments(
            owners.astype(np.int32), {i: k for i, k in kinds.items() if i in shown}
        )
        total += count_matches(truth, image, found)
    return quality(truth, total)


def test_the_ground_truth_merged_is_perfect_but_for_small_stuff() -> None:
    truth = read_panoptic(SIX)
    whole, without = merged(truth, 0), merged(truth, 6000)
    assert whole.all == pytest.approx({"PQ": 100, "SQ": 100, "RQ": 100})
    # one tree of three has 4817 pixels: 2 of 2.5 for one kind of stuff in eight
    assert without.things == whole.things and without.stuff["PQ"] == pytest.approx(97.5)
