"""`condinst predict`: what it writes, prints and returns, and what it never overwrites."""

import json
from pathlib import Path

import cv2
import numpy as np
from command_line import Run, assert_refused


def test_predict_writes_an_overlay_per_image_and_coco_results(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, text, err = condinst("predict", bright_model, photos, "-o", out)
    assert (status, err) == (0, "") and "3 images, 3 instances" in text
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == ["12.jpg", "a.png", "b/a.png", "detections.json"]
    for name, size in (("a.png", (60, 90, 3)), ("b/a.png", (90, 60, 3)), ("12.jpg", (60, 90, 3))):
        drawn, source = cv2.imread(str(out / name)), cv2.imread(str(photos / name))
        assert drawn is not None and source is not None and drawn.shape == size
        assert (drawn != source).any()
    rows = json.loads((out / "detections.json").read_text())
    assert [row["file_name"] for row in rows] == ["12.jpg", "a.png", "a.png"]
    assert [row["image_id"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) >= {"image_id", "category_id", "bbox", "score", "segmentation"}


def test_predict_in_batches_of_any_size_gives_the_same(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    written = []
    for batch in (1, 2, 8):
        out = tmp_path / str(batch)
        assert condinst("predict", bright_model, photos, "-o", out, "--batch", batch)[0] == 0
        written.append((out / "detections.json").read_text())
    assert written[0] == written[1] == written[2]


def test_predict_numbers_images_by_their_file_names_where_all_are_numbers(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (photos / "a.png").rename(photos / "000000000139.png")
    command = ("predict", bright_model, photos / "12.jpg", photos / "000000000139.png", "-o", out)
    assert condinst(*command, "--no-overlays")[0] == 0
    rows = json.loads((out / "detections.json").read_text())
    assert [row["image_id"] for row in rows] == [12, 139]
    assert [p.name for p in out.iterdir()] == ["detections.json"]


def test_predict_skips_bad_files_and_says_so_in_the_status(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (photos / "bad.jpg").write_text("I am a text")
    status, text, err = condinst("predict", bright_model, photos, "-o", out, "--json")
    data = json.loads(text)
    assert status == 1 and len(data["images"]) == 3
    assert err.count("\n") == 1 and err.startswith("condinst: ") and "bad.jpg" in err
    assert [Path(entry["file"]).name for entry in data["failed"]] == ["bad.jpg"]
    assert not (out / "bad.jpg").exists()
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".jpg", ".png", ".json"}


def test_predict_without_a_readable_image_writes_nothing(
    condinst: Run, bright_model: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.jpg"
    status, out, err = condinst("predict", bright_model, missing, "-o", tmp_path / "out")
    assert (status, out) == (2, "") and "missing.jpg does not exist" in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_predict_reads_no_overlay_of_an_earlier_run(
    condinst: Run, bright_model: Path, photos: Path
) -> None:
    for _ in range(2):
        status, text, _ = condinst("predict", bright_model, photos, "-o", photos / "out")
        assert status == 0 and "3 images" in text


def test_predict_never_overwrites_a_source(condinst: Run, bright_model: Path, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    assert_refused(condinst("predict", bright_model, photos, "-o", photos), "would overwrite")
    assert (photos / "a.png").read_bytes() == before


def test_overlays_of_equal_names_get_numbers(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sources = (photos / "a.png", photos / "b" / "a.png", photos / "a.png")
    status, text, _ = condinst("predict", bright_model, *sources, "-o", out, "--no-coco-json")
    assert status == 0 and "2 images" in text  # the same file twice is one
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png"]


def test_predict_takes_patterns_and_filters(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    command = ("predict", bright_model, photos / "**" / "*.png", "-o", tmp_path / "out", "--json")
    assert len(json.loads(condinst(*command)[1])["images"]) == 2
    counts = []
    for classes in ("person", "0", "bicycle, dog", "dog,0"):
        data = json.loads(condinst(*command, "--classes", classes)[1])
        counts.append([image["instances"] for image in data["images"]])
    assert counts == [[1, 1], [1, 1], [0, 0], [1, 1]]


def test_an_image_past_the_cap_names_the_option(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", bright_model, photos / "a.png", "-o", out, "--max-pixels")
    status, _, err = condinst(*command, 60 * 90 - 1)
    assert status == 2 and "--max-pixels 5400" in err and not out.exists()
    assert condinst(*command, 60 * 90)[0] == 0


def test_an_image_past_the_cap_does_not_stop_the_others(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(photos / "large.png"), np.zeros((100, 100, 3), np.uint8))
    command = ("predict", bright_model, photos, "-o", tmp_path / "out", "--max-pixels", 9999)
    status, text, err = condinst(*command)
    assert status == 1 and "3 images" in text and "large.png" in err and err.count("\n") == 1
