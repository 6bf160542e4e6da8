"""`condinst predict --format`: data sets that other tools and our own training read."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision

import condinst_infer as ci
from condinst_infer.datasets.coco import read_instances
from tests.support.command_line import Run, assert_refused


@pytest.fixture
def pictures(demo_folder: Path, tmp_path: Path) -> Path:
    """The shipped micrograph and its mirror image in a folder of its own."""
    image = cv2.imread(str(demo_folder / "nuclei.jpg"))
    assert image is not None
    (tmp_path / "in" / "sub").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "a.png"), image[:300, :400])
    cv2.imwrite(str(tmp_path / "in" / "sub" / "b.png"), image[:300, 400:0:-1])
    return tmp_path / "in"


def results(demo_folder: Path, pictures: Path) -> dict[str, ci.Instances]:
    pipeline = ci.load(demo_folder / "nuclei.onnx")
    return {name: pipeline(pictures / name) for name in ("a.png", "sub/b.png")}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))


def predict(condinst: Run, demo_folder: Path, pictures: Path, format_: str) -> Path:
    out = pictures.parent / "out"
    model = demo_folder / "nuclei.onnx"
    status, text, _ = condinst(
        "predict", model, pictures, "-o", out, "--format", format_, "--no-overlays"
    )
    lines = text.splitlines()
    assert status == 0 and lines[0].startswith(f"{pictures / 'a.png'}: ")
    assert " nucleus), " in lines[0] and " s" in lines[0]
    return out


def test_supervision_and_our_training_read_a_coco_data_set(
    condinst: Run, demo_folder: Path, pictures: Path
) -> None:
    out = predict(condinst, demo_folder, pictures, "coco-dataset")
    assert [path.name for path in out.iterdir()] == ["annotations.json"]
    data = json.loads((out / "annotations.json").read_text())
    expected = results(demo_folder, pictures)
    assert [image["file_name"] for image in data["images"]] == list(expected)
    loaded = supervision.DetectionDataset.from_coco(
        str(pictures), str(out / "annotations.json"), force_masks=True
    )
    read = {Path(path).name: detections for path, _, detections in loaded}
    for name, result in expected.items():
        detections = read[Path(name).name]
        assert (np.asarray(detections.mask) == result.masks).all()
    records = read_instances(out / "annotations.json")
    assert records is not None  # and train takes it


def test_supervision_reads_a_yolo_data_set(
    condinst: Run, demo_folder: Path, pictures: Path
) -> None:
    out = predict(condinst, demo_folder, pictures, "yolo")
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == ["data.yaml", "labels/a.txt", "labels/sub/b.txt"]
    for name, result in results(demo_folder, pictures).items():
        loaded = supervision.DetectionDataset.from_yolo(
            str((pictures / name).parent),
            str((out / "labels" / name).parent),
            str(out / "data.yaml"),
            force_masks=True,
        )
        (detections,) = (d for path, _, d in loaded if Path(path).name == Path(name).name)
        masks = np.asarray(detections.mask)
        solid = [len(p) == 1 and not p[0].holes for p in result.polygons()]
        assert len(masks) == len(result) and sum(solid) > 30
        for mask, read, one in zip(result.masks, masks, solid, strict=True):
            assert not one or mask.sum() < 100 or iou(mask, read) >= 0.99


def test_labelme_finds_the_image_from_its_file(
    condinst: Run, demo_folder: Path, pictures: Path
) -> None:
    out = predict(condinst, demo_folder, pictures, "labelme")
    for name, result in results(demo_folder, pictures).items():
        path = out / Path(name).with_suffix(".json")
        data = json.loads(path.read_text())
        assert (path.parent / data["imagePath"]).resolve() == (pictures / name).resolve()
        assert {shape["label"] for shape in data["shapes"]} == {"nucleus"}
        assert len(data["shapes"]) >= len(result)


def test_none_writes_overlays_alone(condinst: Run, demo_folder: Path, pictures: Path) -> None:
    out = pictures.parent / "out"
    command = ("predict", demo_folder / "nuclei.onnx", pictures, "-o", out, "--format", "none")
    assert condinst(*command)[0] == 0
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["a.png", "b.png"]


def test_holes_and_parts_are_counted(condinst: Run, demo_folder: Path, tmp_path: Path) -> None:
    model = demo_folder / "nuclei.onnx"
    command = ("predict", model, demo_folder / "nuclei.jpg", "-o", tmp_path / "out")
    status, text, _ = condinst(*command, "--format", "labelme")
    result = ci.load(model)(demo_folder / "nuclei.jpg")
    count = sum(len(p) > 1 or any(part.holes for part in p) for p in result.polygons())
    assert status == 0 and bool(count) == ("outer rings only" in text)
    assert not count or f"{count} instances have holes" in text


@pytest.mark.parametrize("format_", ["coco-dataset", "yolo", "labelme"])
def test_images_that_would_share_a_file_are_rejected_before_the_work(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path, format_: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes((photos / "a.png").read_bytes())
    out = tmp_path / "out"
    sources = (photos / "a.png", tmp_path / "other" / "a.png")
    ran = condinst("predict", bright_model, *sources, "-o", out, "--format", format_)
    assert_refused(ran, "a.png and ", "would share", "two folders")
    assert not out.exists()


def test_formats_that_a_source_has_not_are_one_sentence(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    predict = ("predict", bright_model, photos / "a.png", "-o", tmp_path / "out")
    for words, reason in (
        (("--panoptic", "--format", "yolo"), "--panoptic writes --format coco or none, not yolo"),
        (("--ray", "local", "--format", "coco"), "--ray writes shards"),
        (("--format", "voc"), "invalid choice: 'voc'"),
    ):
        assert_refused(condinst(*predict, *words), reason)
    video = ("predict", bright_model, "traffic.mp4", "-o", tmp_path / "out", "--format", "labelme")
    (tmp_path / "traffic.mp4").touch()
    assert_refused(condinst(*video), "videos take --format coco or none, not labelme")
