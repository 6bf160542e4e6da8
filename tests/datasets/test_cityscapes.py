"""Cityscapes' folders become COCO files, from either kind of ground truth."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from condinst_infer import checkpoint
from condinst_infer.datasets.coco_panoptic import id_map, read_panoptic
from tests.support.command_line import Run, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode
HEIGHT, WIDTH = 64, 96
Box = tuple[int, int, int, int]  # first and last column and row: x0, y0, x1, y1
SKY, ROAD = (0, 0, 95, 29), (0, 30, 95, 63)
# what is drawn in each image, in this order, and the id that its pixels have
Drawing = list[tuple[str, Box, int]]
FRAMES: dict[str, Drawing] = {
    "train/aachen/aachen_000000_000019": [
        ("sky", SKY, 23),
        ("road", ROAD, 7),
        ("static", (90, 0, 95, 20), 4),  # void
        ("car", (5, 35, 20, 45), 26000),
        ("car", (60, 40, 64, 44), 26001),  # hidden by the bus
        ("bus", (50, 20, 80, 60), 28000),
        ("person", (52, 25, 55, 40), 24000),  # in front of the bus, which stays in two parts
        ("person", (50, 20, 53, 30), 24001),
        ("cargroup", (22, 33, 40, 45), 26),
        ("car", (35, 40, 45, 50), 26002),
        ("polegroup", (85, 5, 88, 40), 18),  # a label of its own, not a group; void
        ("caravan", (0, 50, 10, 60), 29000),  # counted, but not evaluated
        ("vegetation", (0, 20, 4, 29), 21),
    ],
    "train/ulm/ulm_000004_000019": [("road", (0, 0, 95, 63), 7)],
    "train/ulm/ulm_000001_000019": [
        ("building", (0, 0, 95, 63), 11),
        ("rider", (10, 10, 14, 20), 25000),
        ("bicycle", (8, 20, 18, 30), 33000),
        ("bicyclegroup", (40, 40, 60, 50), 33),
        ("ridergroup", (41, 30, 50, 40), 25),
        ("train", (70, 0, 95, 20), 31000),
        ("truck", (70, 30, 95, 40), 27000),
        ("motorcycle", (70, 50, 95, 60), 32000),
    ],
    "val/bonn/bonn_000000_000019": [("car", (10, 10, 60, 40), 26000)],
}
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def drawn(objects: Drawing) -> np.ndarray:
    """The id of each pixel, [H, W]; drawn without the library that draws polygons."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    for _, (x0, y0, x1, y1), id_ in objects:
        ids[y0 : y1 + 1, x0 : x1 + 1] = id_
    return ids


def polygons(objects: Drawing) -> dict[str, Any]:
    """The content of the official JSON, with what is not drawn."""
    rows: list[dict[str, Any]] = [
        {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
        for label, (x0, y0, x1, y1), _ in objects
    ]
    everywhere = [[0, 0], [95, 0], [95, 63], [0, 63]]
    rows.insert(0, {"label": "car", "polygon": everywhere, "deleted": 1})
    rows.append({"label": "license plate", "polygon": everywhere})
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": rows}


@pytest.fixture
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The official tree; the ground truth as one of the two files, or both."""
    kinds = getattr(request, "param", "instanceIds polygons")
    root = tmp_path / "cityscapes"
    for name, objects in FRAMES.items():
        photograph = root / "leftImg8bit" / f"{name}_leftImg8bit.png"
        truth = root / "gtFine" / f"{name}_gtFine"
        for folder in (photograph.parent, truth.parent):
            folder.mkdir(parents=True, exist_ok=True)
        ids = drawn(objects)
        image = np.stack([ids % 251, ids // 256, ids % 7 * 30], -1).astype(np.uint8)
        cv2.imwrite(str(photograph), image)
        cv2.imwrite(f"{truth}_color.png", image)
        cv2.imwrite(f"{truth}_labelIds.png", np.where(ids < 1000, ids, ids // 1000))
        if "instanceIds" in kinds:
            cv2.imwrite(f"{truth}_instanceIds.png", ids)
        if "polygons" in kinds:
            Path(f"{truth}_polygons.json").write_text(json.dumps(polygons(objects)))
    return root


KINDS = pytest.mark.parametrize("root", ["instanceIds", "polygons"], indirect=True)


@KINDS
def test_objects_and_groups_have_the_pixels_that_are_seen(
    condinst: Run, root: Path, tmp_path: Path
) -> None:
    status, text, err = condinst("convert", "cityscapes", root, "-o", tmp_path / "coco")
    assert (status, err) == (0, "")
    assert "train: 3 images" in text and "10 objects and 3 groups" in text and "val: 1 im" in text
    content = json.loads((tmp_path / "coco" / "instances_train.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    assert names == [f"{name[6:]}_leftImg8bit.png" for name in sorted(FRAMES) if "train/" in name]
    things = {category["id"]: category["name"] for category in content["categories"]}
    assert things[24] == "person" and things[33] == "bicycle" and len(things) == 8
    rows = iter(content["annotations"])
    for image in content["images"]:
        ids = drawn(FRAMES["train/" + image["file_name"].removesuffix("_leftImg8bit.png")])
        for id_ in np.unique(ids):
            label, crowd = (id_ // 1000, 0) if id_ >= 1000 else (id_, 1)
            if label in things:
                row, mask = next(rows), ids == id_
                assert row["image_id"] == image["id"] and row["category_id"] == label
                assert row["iscrowd"] == crowd
                np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), mask)
                assert row["area"] == mask.sum()
                assert row["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
    assert next(rows, None) is None


@KINDS
def test_panoptic_files_have_19_classes_and_the_official_ids(
    condinst: Run, root: Path, tmp_path: Path
) -> None:
    command = ("convert", "cityscapes", root, "-o", tmp_path, "--panoptic", "--split", "train")
    assert condinst(*command)[0] == 0
    assert not (tmp_path / "instances_val.json").exists()
    truth = read_panoptic(tmp_path / "panoptic_train.json")
    assert list(truth.categories) == EVALUATED
    assert [id_ for id_, row in truth.categories.items() if row.is_thing] == EVALUATED[11:]
    assert truth.categories[23].name == "sky" and truth.categories[20].name == "traffic sign"
    assert len(truth.images) == 3
    for image in truth.images:
        ids = drawn(FRAMES["train/" + image.file_name.removesuffix("_leftImg8bit.png")])
        labels = np.where(ids < 1000, ids, ids // 1000)
        np.testing.assert_array_equal(id_map(image), np.where(np.isin(labels, EVALUATED), ids, 0))
        for segment in image.segments:
            assert segment.crowd == (24 <= segment.id < 34)
            assert segment.category == (segment.id if segment.id < 34 else segment.id // 1000)
    rows = json.loads((tmp_path / "panoptic_train.json").read_text())["annotations"]
    (road,) = rows[2]["segments_info"]
    assert road == {"id": 7, "category_id": 7, "area": 6144, "bbox": [0, 0, 96, 64], "iscrowd": 0}


def test_both_kinds_of_ground_truth_give_the_same_files(
    condinst: Run, root: Path, tmp_path: Path
) -> None:
    command = ("convert", "cityscapes", root, "--panoptic", "-o")
    assert condinst(*command, tmp_path / "a")[0] == 0
    for file in root.rglob("*_instanceIds.png"):
        file.unlink()
    assert condinst(*command, tmp_path / "b")[0] == 0
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 4 + len(FRAMES)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_ground_truth_as_detections_is_perfect(
    condinst: Run, root: Path, tmp_path: Path
) -> None:
    assert condinst("convert", "cityscapes", root, "-o", tmp_path)[0] == 0
    truth = tmp_path / "instances_train.json"
    rows = json.loads(truth.read_text())["annotations"]
    results = tmp_path / "results.json"
    results.write_text(json.dumps([row | {"score": 1.0} for row in rows if not row["iscrowd"]]))
    status, text, _ = condinst("eval", results, "--annotations", truth, "--json")
    numbers = json.loads(text)
    assert status == 0 and numbers["detections"] == 10
    assert numbers["mask"]["AP"] == pytest.approx(100) == numbers["box"]["AP"]
    assert condinst("convert", "cityscapes", root, "-o", tmp_path, "--panoptic")[0] == 0
    merged = tmp_path / "panoptic_train.json"
    status, text, _ = condinst("eval", merged, "--panoptic", "--annotations", merged)
    quality = next(line.split() for line in text.splitlines() if line.startswith("all"))
    assert status == 0 and quality[:4] == ["all", "100.0", "100.0", "100.0"]


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_a_step_of_training_on_the_result(
    kind: str, condinst: Run, root: Path, tmp_path: Path
) -> None:
    command = ("convert", "cityscapes", root, "-o", tmp_path / "coco", "--panoptic")
    assert condinst(*command)[0] == 0
    changes = "stem_channels=8 res2_channels=16 width_per_group=4 neck_channels=32 class_convs=1 "
    changes += "box_convs=1 mask_branch_channels=8 short_sides=[64] images_per_batch=2 workers=0"
    sets = [word for pair in changes.split() for word in ("--set", pair)]
    preset = (
        "condinst_cityscapes_r50" if kind == "instances" else "condinst_panoptic_cityscapes_r50"
    )
    command = ("train", preset, *sets, "--iterations", "1", "-o", tmp_path / "run")
    data = ("--train", tmp_path / "coco" / f"{kind}_train.json")
    status, _, err = condinst(*command, *data, "--images", root / "leftImg8bit" / "train")
    assert status == 0, err
    config = checkpoint.load(tmp_path / "run" / "model.safetensors").config
    assert config.mask.mask_stride == 2
    assert config.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert config.class_names[2] == "car"
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "loss/mask" in log and ("loss/panoptic" in log) == (kind == "panoptic")


def test_what_is_wrong_is_named_with_its_file(condinst: Run, root: Path, tmp_path: Path) -> None:
    command = ("convert", "cityscapes", root, "-o", tmp_path / "coco", "--split", "val")
    stem = root / "gtFine" / "val" / "bonn" / "bonn_000000_000019_gtFine"
    ids, json_ = (Path(f"{stem}{end}") for end in ("_instanceIds.png", "_polygons.json"))

    def refused(*words: str) -> None:
        assert_refused(condinst(*command), *words)

    cv2.imwrite(str(ids), np.full((HEIGHT, WIDTH), 34000, np.uint16))
    refused(ids.name, "id 34000")
    cv2.imwrite(str(ids), np.full((HEIGHT, WIDTH), 7001, np.uint16))
    refused(ids.name, "id 7001")
    cv2.imwrite(str(ids), np.zeros((HEIGHT, 50), np.uint16))
    refused(ids.name, "(64, 50)", "(64, 96)")
    cv2.imwrite(str(ids), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    refused(ids.name, "one channel")
    ids.write_bytes(b"no image")
    refused(f"{ids.name} can't be read")
    ids.unlink()
    for change, word in (
        ({"objects": [{"label": "cat", "polygon": []}]}, "object number 1 can't be used: Cityscap"),
        ({"objects": [{"label": "car"}]}, "polygon"),
        ({"objects": [{"label": "car", "polygon": [[1, 2], [3]]}]}, "object number 1"),
        ({"objects": [7]}, "object number 1"),
        ({"objects": None}, "no list of objects"),
        ({"imgWidth": 97}, "(64, 97)"),
    ):
        json_.write_text(json.dumps(polygons([]) | change))
        refused(json_.name, word)
    json_.write_text("[")
    refused(json_.name, "not JSON")
    json_.write_text("[]")
    refused(json_.name)
    json_.unlink()
    refused("has no ground truth", ids.name, json_.name)
    photograph = root / "leftImg8bit" / "val" / "bonn" / "bonn_000000_000019_leftImg8bit.png"
    photograph.write_bytes(b"")
    refused(f"{photograph.name} can't be read")
    assert not (tmp_path / "coco").exists()
    assert_refused(condinst(*command[:2], root / "gtFine", *command[3:]), "leftImg8bit", "val")
