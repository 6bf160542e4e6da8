"""Results in the files of other tools, read back by the tools' own readers."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import supervision
from PIL import Image, ImageDraw

import condinst_infer as ci
from condinst_infer.results.formats import coco_dataset, yolo_data_yaml
from tests.support.results import instances, segmented

SIZE = (90, 120)


def blobs(seed: int, holes: bool) -> np.ndarray:
    """Masks of ragged blobs, bool [K, H, W], of one pixel and more; one part without a hole each,
    unless `holes`."""
    rng, masks = np.random.default_rng(seed), []
    while len(masks) < 8:
        noise = rng.random(SIZE).astype(np.float32)
        grey = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.7, 6))
        mask = (grey > np.quantile(grey, rng.uniform(0.5, 0.97))).astype(np.uint8)
        if not holes:
            count, parts = cv2.connectedComponents(mask)
            mask = (parts == rng.integers(1, count)).astype(np.uint8)
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.fillPoly(mask, contours, 1)
        masks.append(mask.astype(bool))
    return np.stack(masks)


@pytest.fixture(params=range(4), ids="seed{}".format)
def solid(request: pytest.FixtureRequest) -> ci.Instances:
    return instances(blobs(request.param, holes=False), np.zeros((*SIZE, 3), np.uint8))


@pytest.fixture(params=range(2), ids="seed{}".format)
def ragged(request: pytest.FixtureRequest) -> ci.Instances:
    """Masks with holes and several parts, one without a pixel."""
    masks = blobs(request.param, holes=True)
    masks[3] = False
    return instances(masks)


def test_outer_rings_minus_holes_are_the_mask(solid: ci.Instances, ragged: ci.Instances) -> None:
    for result in (solid, ragged):
        for mask, polygons in zip(result.masks, result.polygons(), strict=True):
            filled = np.zeros(SIZE, np.uint8)
            for polygon in polygons:
                cv2.fillPoly(filled, [polygon.outer], 1)
            assert (filled.astype(bool) >= mask).all()
            holes = [hole for polygon in polygons for hole in polygon.holes]
            assert bool(holes) == (filled.astype(bool) != mask).any()
            for hole in holes:  # a ring of a hole belongs to the mask
                assert mask[hole[:, 1], hole[:, 0]].all()


def test_tolerance_saves_points() -> None:
    disc = cv2.circle(np.zeros(SIZE, np.uint8), (60, 45), 40, 1, -1).astype(bool)
    result = instances(disc[None])
    counts = [len(result[0].polygons(t)[0].outer) for t in (0, 1, 3)]
    assert counts[0] > counts[1] > counts[2] >= 4
    (coarse,) = result[0].polygons(1)
    filled = cv2.fillPoly(np.zeros(SIZE, np.uint8), [coarse.outer], 1).astype(bool)
    # a circle of radius 40 within a pixel of its polygon: 2 pi 40 of 5027 pixels at most
    assert np.count_nonzero(filled != disc) < 2 * np.pi * 40


def read_coco(result: ci.Instances, folder: Path) -> Any:
    image = {"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    data = coco_dataset(
        [image], result.to_coco_annotations(7), result.class_names, result.category_ids
    )
    (folder / "annotations.json").write_text(json.dumps(data))
    cv2.imwrite(str(folder / "a.png"), np.zeros((*SIZE, 3), np.uint8))
    loaded = supervision.DetectionDataset.from_coco(
        str(folder), str(folder / "annotations.json"), force_masks=True
    )
    assert loaded.classes == ["cat", "dog"]
    ((_, _, detections),) = list(loaded)
    return detections


def test_supervision_reads_equal_masks_of_a_coco_data_set(
    solid: ci.Instances, ragged: ci.Instances, tmp_path: Path
) -> None:
    for result in (solid, ragged):
        detections = read_coco(result, tmp_path)
        assert (np.asarray(detections.mask) == result.masks).all()
        assert (detections.class_id == result.labels).all()


def test_coco_has_polygons_of_solid_masks_and_rles_of_others(
    solid: ci.Instances, ragged: ci.Instances
) -> None:
    kinds = [type(row["segmentation"]) for row in solid.to_coco_annotations(1)]
    assert kinds == [list if len(p[0].outer) >= 3 else dict for p in solid.polygons()]
    assert list in kinds
    rows = ragged.to_coco_annotations(1)
    assert all(isinstance(row["segmentation"], dict) for row in rows)
    assert [row["area"] for row in rows] == ragged.masks.sum((1, 2)).tolist()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


def test_supervision_reads_the_polygons_of_yolo(solid: ci.Instances, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((*SIZE, 3), np.uint8))
    solid.save(tmp_path / "labels" / "a.txt")
    (tmp_path / "data.yaml").write_text(yolo_data_yaml(["cat", 'a "dog": 1']))
    loaded = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), True
    )
    assert loaded.classes == ["cat", 'a "dog": 1']
    ((_, _, detections),) = list(loaded)
    assert (detections.class_id == solid.labels).all()
    for read, mask in zip(np.asarray(detections.mask), solid.masks, strict=True):
        assert iou(read, mask) >= 0.99 or mask.sum() < 100


def test_readers_of_yolo_that_cut_digits_off_find_the_same_pixels(solid: ci.Instances) -> None:
    for line, mask in zip(solid.to_yolo().splitlines(), solid.masks, strict=True):
        fractions = np.array(line.split()[1:], dtype=np.float32).reshape(-1, 2)
        points = (fractions * np.array(SIZE[::-1], np.float32)).astype(np.int32)
        assert (cv2.fillPoly(np.zeros(SIZE, np.uint8), [points], 1).astype(bool) == mask).all()


def test_parts_are_joined_for_yolo(ragged: ci.Instances) -> None:
    lines = ragged.to_yolo().splitlines()
    assert len(lines) == len(ragged) - 1  # one has no pixel
    solid = np.zeros((1, *SIZE), bool)
    solid[0, 5:20, 5:25] = solid[0, 40:70, 60:100] = True
    (line,) = instances(solid).to_yolo().splitlines()
    points = np.array(line.split()[1:], float).reshape(-1, 2) * SIZE[::-1]
    filled = cv2.fillPoly(np.zeros(SIZE, np.uint8), [points.astype(np.int32)], 1).astype(bool)
    bridge = np.count_nonzero(filled & ~solid[0])
    assert (filled >= solid[0]).all() and 0 < bridge < 60  # a line of 41 pixels joins them


def test_labelme_draws_the_mask_from_its_shapes(solid: ci.Instances) -> None:
    data = json.loads(json.dumps(solid.to_labelme("../a.png")))
    assert (data["imagePath"], data["imageHeight"], data["imageWidth"]) == ("../a.png", *SIZE)
    assert data["imageData"] is None and data["flags"] == {} and data["version"]
    assert [shape["label"] for shape in data["shapes"]] == list(solid.names)
    for shape, mask in zip(data["shapes"], solid.masks, strict=True):
        assert shape["shape_type"] == "polygon" and len(shape["points"]) >= 3
        image = Image.new("L", (SIZE[1], SIZE[0]))
        points = [tuple(point) for point in shape["points"]]
        ImageDraw.Draw(image).polygon(points, outline=1, fill=1)  # as LabelMe does
        assert iou(np.asarray(image, bool), mask) >= 0.99 or mask.sum() < 100


def test_parts_are_shapes_of_one_group_for_labelme() -> None:
    mask = np.zeros((2, *SIZE), bool)
    mask[0, 5:20, 5:25] = mask[0, 40:70, 60:100] = mask[1, 1:4, 1:4] = True
    shapes = instances(mask).to_labelme()["shapes"]
    assert [shape["group_id"] for shape in shapes] == [1, 1, None]


def test_csv_has_a_row_per_instance(solid: ci.Instances, tmp_path: Path) -> None:
    solid.save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == solid.scores.tolist()
    assert [int(row["area"]) for row in rows] == solid.areas.tolist()
    assert [row["name"] for row in rows] == list(solid.names)
    frame = solid.to_dataframe()
    assert list(frame.columns) == list(rows[0]) and frame["x2"].tolist() == [11.5] * 8
    assert list(instances(np.zeros((0, *SIZE), bool)).to_dataframe().columns) == list(rows[0])


def test_panoptic_segments_are_saved_too(tmp_path: Path) -> None:
    result = segmented()
    for name in ("a.png", "a.jpg", "a.json", "a.csv"):
        result.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 0
    assert (cv2.imread(str(tmp_path / "a.png")) == result.plot()).all()
    assert result.to_dataframe()["area"].tolist() == [segment.area for segment in result]
    with pytest.raises(ci.InputError, match=r"must end in one of .png, .jpg, .jpeg, .json, .csv"):
        result.save(tmp_path / "a.txt")


def test_a_file_that_can_not_be_written_is_one_sentence(
    solid: ci.Instances, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    for name, words in (("a.bmp", "must end in one of"), ("file/a.json", "can't be written")):
        with pytest.raises(ci.InputError, match=words):
            solid.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ci.InputError, match="keeps no image"):
        instances(solid.masks).save(tmp_path / "a.png")


def test_notebooks_get_a_png(solid: ci.Instances) -> None:
    data = solid._repr_png_()
    assert data is not None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert (decoded == solid.plot()).all()
    assert instances(solid.masks)._repr_png_() is None


def test_show_opens_the_viewer_of_the_system(
    solid: ci.Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    solid.show()
    segmented().show()
    assert (np.asarray(shown[0])[:, :, ::-1] == solid.plot()).all() and len(shown) == 2
