"""Results as JSON, there and back, and texts that are something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.results.json_format import SCHEMA
from tests.support.results import instances, segmented

ROOT = Path(__file__).parents[2]


def result() -> ci.Instances:
    rng = np.random.default_rng(2)
    masks = rng.random((4, 21, 17)) < 0.3
    masks[2] = False
    return instances(masks)


def test_the_schema_in_export_is_this_one() -> None:
    text = (ROOT / "export" / "schema" / "results.json").read_text()
    assert json.loads(text) == SCHEMA, "run: python -m condinst_infer.results.json_format > FILE"


def test_results_follow_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    for data in (result().to_dict(), instances(np.zeros((0, 5, 6), bool)).to_dict()):
        jsonschema.validate(data, SCHEMA)
    jsonschema.validate(segmented().to_dict(), SCHEMA)
    for broken in ({}, {"image_size": [3, 4]}, result().to_dict() | {"scores": [2.0]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_instances_come_back_equal() -> None:
    for there in (result(), instances(np.zeros((0, 5, 6), bool))):
        back = ci.Instances.from_json(there.to_json())
        assert back.to_dict() == there.to_dict()
        for name in ("boxes", "scores", "labels", "masks", "areas"):
            a, b = getattr(back, name), getattr(there, name)
            assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
        assert back.to_coco(1) == there.to_coco(1) and back.image is None


def test_a_path_is_read(tmp_path: Path) -> None:
    result().save(tmp_path / "a.json")
    assert ci.Instances.from_json(tmp_path / "a.json").to_dict() == result().to_dict()
    with pytest.raises(ci.InputError, match="b.json does not exist"):
        ci.Instances.from_json(tmp_path / "b.json")


def test_panoptic_segmentations_come_back_equal(tmp_path: Path) -> None:
    there = segmented()
    there.save(tmp_path / "a.json")
    assert ci.PanopticSegmentation.from_json(tmp_path / "a.json").to_dict() == there.to_dict()
    back = ci.PanopticSegmentation.from_json(there.to_json().encode())
    assert back.to_dict() == there.to_dict()
    assert back.id_map.dtype == np.int32 and (back.id_map == there.id_map).all()
    things = [segment for segment in there if segment.is_thing]
    assert back.instances.names == tuple(segment.name for segment in things)
    assert [(back.id_map == s.id).sum() for s in things] == back.instances.areas.tolist()
    assert back.to_coco(3, "a.png") == there.to_coco(3, "a.png")


def changed(**fields: Any) -> str:
    return json.dumps(result().to_dict() | fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the JSON of instances is not JSON: Expecting value"),
        (b"\xff\xfe", "the JSON of instances is not UTF-8 text"),
        ("[1]", "instances is [1]; it must be of type object"),
        ("{}", "instances has no field 'image_size'"),
        (changed(image_size=[21]), "instances.image_size has 1 entries; it must have 2"),
        (changed(image_size=[21, 0]), "instances.image_size[1] is 0"),
        (changed(boxes=[[0, 0, 1, "2"]] * 4), 'instances.boxes[0][3] is "2"'),
        (changed(scores=[0.5, 0.5, 0.5, 1.5]), "instances.scores[3] is 1.5"),
        (changed(scores=[0.5, 0.5, 0.5, float("nan")]), "instances: scores[3] is nan"),
        (changed(scores=[0.5, True, 0.5, 0.5]), "instances.scores[1] is true"),
        (changed(scores=[0.5]), "instances.scores has 1 entries, boxes 4"),
        (changed(labels=[0, 1, 0, 2]), "instances.labels[3] is 2, not the class 'dog'"),
        (changed(category_ids=[17]), "instances.category_ids must have 2 entries"),
        (changed(masks=[{"size": [21, 17], "counts": "0"}] * 4), "instances.masks[0].counts"),
        (changed(masks=[{"size": [1, 1], "counts": "1"}] * 4), "instances.masks[0].size is [1, 1]"),
        (changed(image_size=[10**9, 10**9]), "instances.image_size is [1000000000, 1000000000]"),
        (changed(boxes=[[0, 0, 1, 1e300]] * 4), "instances.boxes[0][3] is 1e+300"),
        (changed(masks=[{"size": [21, 17]}] * 4), "instances.masks[0] has no field 'counts'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_anything_else_names_the_field(text: str | bytes, words: str) -> None:
    with pytest.raises(ci.InputError) as refusal:
        ci.Instances.from_json(text)
    assert words in str(refusal.value)


def test_segments_that_overlap_are_rejected() -> None:
    data = segmented().to_dict()
    data["segments"][1]["mask"] = data["segments"][0]["mask"]
    with pytest.raises(ci.InputError, match=r"segments\[1\].mask overlaps"):
        ci.PanopticSegmentation.from_json(json.dumps(data))
    data["segments"][1]["is_thing"] = 1
    with pytest.raises(ci.InputError, match=r"panoptic.segments\[1\].is_thing is 1"):
        ci.PanopticSegmentation.from_json(json.dumps(data))
