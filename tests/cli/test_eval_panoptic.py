"""`condinst eval --panoptic`: files in, PQ out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer import load
from condinst_infer.config.model import CondInstConfig
from condinst_infer.datasets.coco_panoptic import read_panoptic
from condinst_infer.errors import InputError
from condinst_infer.evaluation.panoptic_quality import evaluate_panoptic
from tests.support.command_line import Run, assert_refused

SIZES = ((90, 131), (131, 60), (90, 131))
Rename = Callable[[int], int]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of coloured squares, of two sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture
def truth(pictures: Path, panoptic_onnx: Path, tmp_path: Path) -> Path:
    """What the model finds in `pictures`."""
    with load(panoptic_onnx) as pipeline:
        results = pipeline.panoptic(sorted(pictures.iterdir()))
        content: dict[str, Any] = {
            "images": [
                {"id": 5 * n, "file_name": f"{n}.png", "height": h, "width": w}
                for n, (h, w) in enumerate(SIZES)
            ],
            "annotations": [result.to_coco(5 * n, f"{n}.png") for n, result in enumerate(results)],
            "categories": categories(pipeline.config),
        }
    for number, result in enumerate(results):
        assert len(result.segments) > 3
        result.write_png(tmp_path / "truth" / f"{number}.png")
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    return file


def categories(config: CondInstConfig) -> list[dict[str, Any]]:
    stuff = config.panoptic
    things = zip(config.category_ids, config.class_names, strict=True)
    return [
        *({"id": id_, "name": name, "isthing": 1} for id_, name in things),
        *(
            {"id": id_, "name": name, "isthing": 0}
            for id_, name in zip(stuff.stuff_ids, stuff.stuff_names, strict=True)
        ),
    ]


def renumbered(file: Path, rename: Rename, *, categories_too: bool) -> None:
    """Give the categories of a file other ids."""
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        for info in annotation["segments_info"]:
            info["category_id"] = rename(info["category_id"])
    for category in content["categories"] if categories_too else ():
        category["id"] = rename(category["id"])
    file.write_text(json.dumps(content))


def test_what_the_model_finds_is_perfect_where_it_is_the_truth(
    condinst: Run, panoptic_onnx: Path, truth: Path, pictures: Path
) -> None:
    command = ("eval", panoptic_onnx, "--panoptic", "--annotations", truth, "--images", pictures)
    status, text, err = condinst(*command)
    first, head, *rows = text.splitlines()
    assert (status, err) == (0, "") and first.startswith("3 images, ")
    assert head.split() == ["PQ", "SQ", "RQ", "matched", "missed", "wrong"]
    assert [row.split()[0] for row in rows[:3]] == ["all", "things", "stuff"]
    assert len({len(row) for row in (head, *rows[3:])}) == 1  # columns stand below each other
    for row in rows:
        assert row.count(" 100.0") == 3, row
    assert any(row.startswith("grass") for row in rows)


def test_classes_are_matched_by_name_and_else_by_id(
    condinst: Run, panoptic_onnx: Path, truth: Path, pictures: Path
) -> None:
    command = ("eval", panoptic_onnx, "--panoptic", "--annotations", truth, "--images", pictures)
    renumbered(truth, lambda id_: 1000 - id_, categories_too=True)
    assert json.loads(condinst(*command, "--json")[1])["all"]["PQ"] == pytest.approx(100)
    content = json.loads(truth.read_text())
    for category in content["categories"]:
        category["name"] = f"class {category['id']}"
    truth.write_text(json.dumps(content))
    assert_refused(condinst(*command), "does not list 83 of the model's 83 classes", "1 (person)")
    renumbered(truth, lambda id_: 1000 - id_, categories_too=True)
    assert json.loads(condinst(*command, "--json")[1])["all"]["PQ"] == pytest.approx(100)


def test_segments_that_were_written_give_the_same_numbers(
    condinst: Run, panoptic_onnx: Path, truth: Path, pictures: Path, tmp_path: Path
) -> None:
    # a fifth of the segments get the class of others, so that the numbers say something
    renumbered(truth, lambda id_: 202 if id_ % 5 == 1 else id_, categories_too=False)
    renumbered(truth, lambda id_: id_ + 300, categories_too=True)
    found = tmp_path / "out" / "found.json"
    options = ("--panoptic", "--annotations", truth, "--json")
    ran = []
    for workers in (1, 2):
        words = ("--images", pictures, "--detections", found, "--workers", workers)
        status, text, err = condinst("eval", panoptic_onnx, *options, *words)
        assert (status, err) == (0, "")
        # with other threads the last digits of a score may differ
        kept = json.loads(found.read_text(), parse_float=lambda digits: round(float(digits), 4))
        ran.append((text, kept))
    assert ran[0] == ran[1]
    data = json.loads(ran[0][0])
    assert 20 < data["all"]["PQ"] < 95 and data["images"] == 3
    assert set(data["classes"][0]) == {
        *("id", "name", "is_thing", "quality", "matched", "missed", "wrong"),
    }
    status, text, err = condinst("eval", found, *options)
    assert (status, err) == (0, "") and json.loads(text) == data | {"model": str(found)}
    folder = tmp_path / "predicted"
    assert condinst("predict", panoptic_onnx, pictures, "-o", folder, "--panoptic")[0] == 0
    rows = json.loads((folder / "panoptic.json").read_text())
    ids = {int(Path(image["file_name"]).stem): image["id"] for image in rows["images"]}
    assert ids == {0: 0, 1: 1, 2: 2}  # the numbers the files are named by
    for annotation in rows["annotations"]:
        annotation["image_id"] *= 5
        for info in annotation["segments_info"]:
            info["category_id"] += 300
    (folder / "panoptic.json").write_text(json.dumps(rows))
    status, text, err = condinst("eval", folder, *options)
    assert (status, err) == (0, "") and json.loads(text) == data | {"model": str(folder)}
    truth.with_suffix("").rename(tmp_path / "elsewhere")
    assert_refused(condinst("eval", found, *options), "truth/0.png does not exist", "--pngs")
    again = json.loads(condinst("eval", found, *options, "--pngs", tmp_path / "elsewhere")[1])
    assert again["all"] == data["all"]


def test_the_first_images_only(
    condinst: Run, panoptic_onnx: Path, truth: Path, pictures: Path
) -> None:
    (pictures / "2.png").unlink()
    command = ("eval", panoptic_onnx, "--panoptic", "--annotations", truth, "--images", pictures)
    assert_refused(condinst(*command), "2.png does not exist; the image folder")
    data = json.loads(condinst(*command, "--limit", 2, "--json")[1])
    assert data["images"] == 2 and data["all"]["PQ"] == pytest.approx(100)


def test_eval_says_in_one_line_what_is_wrong(
    condinst: Run,
    panoptic_onnx: Path,
    bright_model: Path,
    truth: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    images, instances = ("--images", pictures), tmp_path / "instances.json"
    content = json.loads(truth.read_text())
    instances.write_text(json.dumps(content | {"annotations": [{"id": 1, "bbox": []}]}))
    panoptic = ("--panoptic", "--annotations", truth)
    for command, word in (
        ((panoptic_onnx, "--annotations", truth, *images), "or evaluate with --panoptic"),
        ((panoptic_onnx, "--annotations", truth, *images, "--pngs", "."), "give --panoptic too"),
        ((panoptic_onnx, *panoptic, *images, "--max-dets", "5"), "of PQ every segment counts"),
        ((panoptic_onnx, "--panoptic", "--annotations", instances, *images), "no segments_info"),
        ((bright_model, *panoptic, *images), "condinst_nano is an instance model"),
        ((panoptic_onnx, *panoptic), "--images DIR"),
        ((instances, *panoptic), "is no COCO panoptic result"),
        ((truth, *panoptic, "--detections", tmp_path / "a.json"), "leave --detections out"),
    ):
        assert_refused(condinst("eval", *command), word)


def test_an_image_of_another_size_is_refused(
    panoptic_onnx: Path, truth: Path, pictures: Path
) -> None:
    cv2.imwrite(str(pictures / "1.png"), np.zeros((60, 131, 3), np.uint8))
    with load(panoptic_onnx) as pipeline, pytest.raises(InputError, match=r"1.png .*\(60, 131\)"):
        evaluate_panoptic(pipeline, read_panoptic(truth), pictures)
