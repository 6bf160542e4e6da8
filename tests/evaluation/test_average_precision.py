"""COCO's numbers: against pycocotools, on what is known to be perfect, and on damaged files."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from condinst_infer.errors import ConfigError, InputError, MissingExtraError
from condinst_infer.evaluation.average_precision import Numbers, evaluate_detections
from tests.support.coco_made_up import (
    Content,
    ground_truth_as_detections,
    made_up,
    noisy_detections,
)

RECORDS = Path(__file__).parents[1] / "data" / "coco_records.json"
Write = Callable[[Any], Path]
Kind = Literal["bbox", "segm"]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an annotation file."""

    def file(content: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return path

    return file


@pytest.fixture(params=["made up", "records"])
def content(request: pytest.FixtureRequest) -> Content:
    return made_up() if request.param == "made up" else json.loads(RECORDS.read_text())


def test_the_ground_truth_is_perfect(content: Content, write: Write) -> None:
    rows = ground_truth_as_detections(content)
    result = evaluate_detections(write(content), rows, max_detections=500)
    for numbers in (result.box, result.mask):
        for name in set(numbers) - {"AR1", "AR10"}:
            assert numbers[name] == pytest.approx(100, abs=1e-9), name
    assert (result.images, result.detections) == (len(content["images"]), len(rows))


@pytest.mark.parametrize("most", [3, 100, 500])
def test_all_numbers_are_those_of_pycocotools(
    content: Content, write: Write, most: int, tmp_path: Path
) -> None:
    rows = noisy_detections(content)
    result = evaluate_detections(write(content), rows, max_detections=most)
    kinds: tuple[tuple[Numbers, Kind], ...] = ((result.box, "bbox"), (result.mask, "segm"))
    for ours, kind in kinds:
        theirs = numbers_of_pycocotools(content, rows, kind, most, tmp_path)
        assert ours.keys() == theirs.keys() and len(ours) == 12
        for name, value in theirs.items():
            assert ours[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name
        assert 5 < (ours["AP"] or 0) < 95  # else the comparison would show nothing


def numbers_of_pycocotools(
    content: Content, rows: list, kind: Kind, most: int, folder: Path
) -> Numbers:
    """The twelve numbers, 0 to 100; its own summary serves for 100 detections only."""
    without = "bbox" if kind == "segm" else "segmentation"  # else it takes areas from boxes
    rows = [{k: v for k, v in row.items() if k != without} for row in rows]
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(rows))
    with redirect_stdout(StringIO()):
        truth = COCO(str(folder / "truth.json"))
        found = truth.loadRes(str(folder / "found.json"))
        judge = COCOeval(truth, found, kind)
        judge.params.maxDets = sorted([1, min(most, 10), most])
        judge.evaluate()
        judge.accumulate()
        if most == 100:
            judge.summarize()
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    values = [precision[:, :, :, 0, 2], precision[0, :, :, 0, 2], precision[5, :, :, 0, 2]]
    values += [precision[:, :, :, size, 2] for size in (1, 2, 3)]
    values += [recall[:, :, 0, place] for place in (0, 1, 2)]
    values += [recall[:, :, size, 2] for size in (1, 2, 3)]
    means = [v[v > -1].mean() if (v > -1).any() else -1 for v in values]
    if most == 100:
        np.testing.assert_allclose(means, judge.stats, atol=1e-12)
    names = "AP AP50 AP75 APS APM APL AR1 AR10 AR ARS ARM ARL".split()
    return {n: None if m < 0 else 100 * float(m) for n, m in zip(names, means, strict=True)}


def test_more_detections_per_image_count_only_where_asked(write: Write) -> None:
    content = made_up()  # one image has 150 objects
    rows = ground_truth_as_detections(content)
    some, all_ = (
        evaluate_detections(write(content), rows, max_detections=most).mask for most in (100, 500)
    )
    assert (some["AR"] or 0) < (all_["AR"] or 0) and (some["AP"] or 0) < (all_["AP"] or 0)


def test_missing_fields_come_from_the_mask(write: Write) -> None:
    content = made_up()
    rows = noisy_detections(content)
    whole = evaluate_detections(write(content), rows)
    for entry in content["annotations"]:
        del entry["area"], entry["bbox"]
        if not entry["iscrowd"]:
            del entry["iscrowd"]
    assert evaluate_detections(write(content), rows) == whole
    for row in rows:
        del row["bbox"]
    assert evaluate_detections(write(content), rows).mask == whole.mask


def test_a_given_area_decides_what_is_small(write: Write) -> None:
    content = made_up()
    for entry in content["annotations"]:
        entry["area"] = 50**2
    mask = evaluate_detections(write(content), noisy_detections(content)).mask
    assert mask["APS"] is None and mask["APL"] is None and mask["ARM"] == mask["AR"]


def test_an_object_of_id_zero_can_be_found(write: Write) -> None:
    content = made_up()
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number
    rows = ground_truth_as_detections(content)
    result = evaluate_detections(write(content), rows, max_detections=500)
    assert result.mask["AR"] == result.box["AR"] == pytest.approx(100, abs=1e-9)


def test_nothing_found_is_zero_and_nothing_to_find_is_undefined(write: Write) -> None:
    content = made_up()
    result = evaluate_detections(write(content), [])
    assert set(result.box.values()) == set(result.mask.values()) == {0.0}
    rows = ground_truth_as_detections(content)
    result = evaluate_detections(write(content | {"annotations": []}), rows)
    assert set(result.box.values()) == set(result.mask.values()) == {None}


def test_an_object_without_a_mask_is_not_found(write: Write) -> None:
    content = made_up()
    rows = ground_truth_as_detections(content)
    found = evaluate_detections(write(content), rows).mask["AR"]
    content["annotations"][0]["segmentation"] = []
    missed = evaluate_detections(write(content), rows).mask["AR"]
    assert missed is not None and found is not None and missed < found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, "no list of images"),
        ({"annotations": {}}, "no list of annotations"),
        ({"categories": []}, "lists no categories"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1, "height": 5}]}, "images lacks file_name, height, id, width"),
        ({"annotations": [{"id": 4, "image_id": 7, "category_id": 2}]}, "annotation 4 .*segm"),
        ({"annotations": [{"id": 4, "image_id": 1, "category_id": 2}]}, "annotation 4 .*image 1"),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "number 1 .*category 1 "),
        ({"annotations": ["x"]}, "annotation number 1 "),
    ],
)
def test_what_is_no_annotation_file_is_refused(change: dict, words: str, write: Write) -> None:
    with pytest.raises(InputError, match=words):
        evaluate_detections(write(made_up() | change), [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": None}, "number 2 .*"),
        ({"image_id": 1}, "image 1 "),
        ({"category_id": 1}, "category 1 "),
        ({"bbox": [1, 2, 3]}, "4"),
        ({"segmentation": {"size": [5, 5], "counts": "W"}}, r"\[5, 5\]"),
        ({"segmentation": {"size": [200, 300], "counts": [5, 5]}}, "add up"),
        ({"segmentation": {"size": [200, 300], "counts": [-5, 60005]}}, "add up"),
        ({"segmentation": {"size": [200, 300], "counts": "zz~"}}, "no COCO run lengths"),
        ({"segmentation": {"size": [200, 300], "counts": "é"}}, "no COCO run lengths"),
        ({"segmentation": 5}, "TypeError"),
    ],
)
def test_what_is_no_detection_is_refused(change: dict, words: str, write: Write) -> None:
    good = ground_truth_as_detections(made_up())[0]
    with pytest.raises(InputError, match=f"detection.*{words}"):
        evaluate_detections(write(made_up()), [good, good | change])
    with pytest.raises(ConfigError, match="max_detections"):
        evaluate_detections(write(made_up()), [good], max_detections=0)


def test_without_faster_coco_eval_the_extra_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"condinst-infer\[eval\]"):
        evaluate_detections(write(made_up()), [])
