"""`condinst predict`: what it writes, prints and returns, and what it never overwrites."""

import itertools
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer.cli.options import RunOptions
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.processing.preprocess import read_image
from condinst_infer.results.draw import write_image
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused

Patch = pytest.MonkeyPatch


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    """Fourteen images of a bright object; every third is large, so that it takes longer."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(14):
        image = np.zeros((600, 900, 3) if number % 3 == 0 else (60, 90, 3), np.uint8)
        image[20:50, 10 : 20 + 5 * number] = 255
        cv2.imwrite(str(folder / f"{number:02}.png"), image)
    return folder


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


def test_a_manifest_names_images_relative_to_its_folder(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    manifest, out = photos / "list.txt", tmp_path / "out"
    manifest.write_text(f"b/a.png\n\n  {photos / '12.jpg'}  \nb/../b/a.png\n")
    status, text, _ = condinst("predict", bright_model, manifest, "-o", out, "--json")
    files = [image["file"] for image in json.loads(text)["images"]]
    assert (status, files) == (0, [str(photos / "b/a.png"), str(photos / "12.jpg")])
    manifest.write_text("\n")
    ran = condinst("predict", bright_model, manifest, "-o", out)
    assert_refused(ran, "there is no path in", "list.txt")


def test_predict_in_batches_of_any_size_gives_the_same(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    written = []
    for batch in (1, 2, 8):
        out = tmp_path / str(batch)
        assert condinst("predict", bright_model, photos, "-o", out, "--batch", batch)[0] == 0
        written.append((out / "detections.json").read_text())
    assert written[0] == written[1] == written[2]


def test_predict_writes_the_same_with_any_number_of_workers(
    condinst: Run, bright_model: Path, many_photos: Path, tmp_path: Path
) -> None:
    (many_photos / "05-bad.png").write_text("I am a text")
    (many_photos / "11-bad.png").write_text("")
    written = []
    for words in (("--workers", 1), ("--workers", 2), ("--workers", 3, "--batch", 4), ()):
        out = tmp_path / "out"
        command = ("predict", bright_model, many_photos, "-o", out, *words, "--threads", 1)
        status, text, err = condinst(*command, "--json")
        data = json.loads(text)
        assert status == 1 and data.pop("seconds") > 0
        assert all(image.pop("seconds") >= 0 for image in data["images"])
        assert [line.count("-bad.png") for line in err.splitlines()] == [1, 1]
        files = {str(p): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
        written.append((data, err, files))
        shutil.rmtree(out)
    data, err, files = written[0]
    names = [Path(image["file"]).name for image in data["images"]]
    assert len(files) == 15 and names == sorted(names) and len(names) == 14
    assert [Path(f["file"]).name for f in data["failed"]] == ["05-bad.png", "11-bad.png"]
    assert all(others == written[0] for others in written)


def test_workers_do_all_that_is_done_to_an_image(
    condinst: Run, bright_model: Path, many_photos: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    together = threading.Barrier(2)
    for name, stage in (("read_image", read_image), ("write_image", write_image)):

        def recorded(*args: Any, stage: Any = stage, **options: Any) -> Any:
            together.wait(20)  # two workers are at the same stage at the same time
            return stage(*args, **options)

        monkeypatch.setattr(f"condinst_infer.cli.predict_images.{name}", recorded)
    asked = []
    monkeypatch.setattr(
        "condinst_infer.cli.predict.load",
        lambda *args, **options: (asked.append(options["workers"]), load(*args, **options))[1],
    )
    command = ("predict", bright_model, many_photos, "-o", tmp_path / "out", "--workers", 2)
    assert condinst(*command)[0] == 0 and asked == [2]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_whole_files_only(
    condinst: Run,
    bright_model: Path,
    many_photos: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    workers: int,
) -> None:
    numbers = itertools.count()

    def interrupted(path: Path, image: np.ndarray) -> None:
        if next(numbers) == 3:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
        write_image(path, image)

    monkeypatch.setattr("condinst_infer.cli.predict_images.write_image", interrupted)
    out = tmp_path / "out"
    command = ("predict", bright_model, many_photos, "-o", out, "--workers", workers)
    status, text, err = condinst(*command)
    files = [path for path in out.rglob("*.png") if path.is_file()]
    rows = json.loads((out / "detections.json").read_text())
    done = len({row["image_id"] for row in rows})
    count = len(list(many_photos.iterdir()))
    said = f"condinst: interrupted; {done} of {count} images are done.\n"
    assert (status, err) == (130, said) and done <= len(files)
    for number, line in enumerate(text.splitlines()[:-1]):  # of those that were done
        assert f"/{number:02}.png: 1 instances (1 person), " in line
    assert 3 <= len(files) <= 4 + 2 * workers
    for path in files:
        assert not path.name.startswith(".")
        assert cv2.imread(str(path)) is not None
    assert not [t for t in threading.enumerate() if t.name.startswith("condinst")]


def test_an_overlay_that_cannot_be_written_ends_it(
    condinst: Run, bright_model: Path, many_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    for workers in (1, 3):
        command = ("predict", bright_model, many_photos, "-o", tmp_path / "out")
        assert_refused(condinst(*command, "--workers", workers), "out is a file; give the name")


def test_a_static_batch_is_filled_with_images(
    condinst: Run, many_photos: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    model = write_bright_model(tmp_path / "static.onnx", batch=4, size=(96, 160))
    sizes, call = [], Pipeline.__call__

    def recorded(self: Pipeline, source: Any, **options: Any) -> Any:
        sizes.append(len(source))
        return call(self, source, **options)

    monkeypatch.setattr(Pipeline, "__call__", recorded)
    for batch, expected in ((1, [4, 4, 4, 2]), (7, [7, 7])):
        sizes.clear()
        out = tmp_path / str(batch)
        command = ("predict", model, many_photos, "-o", out, "--batch", batch)
        assert condinst(*command, "--workers", 1)[0] == 0 and sizes == expected


def test_workers_are_as_many_as_keep_the_cores_busy(monkeypatch: Patch) -> None:
    for cores, threads, batch, images, expected in (
        (2, None, 1, 100, 2),
        (2, None, 1, 1, 1),
        (2, None, 1, 0, 1),
        (64, None, 1, 100, 8),
        (64, None, 1, 3, 3),
        (6, 2, 1, 100, 3),
        (2, 4, 1, 100, 1),
        (8, None, 4, 9, 3),
    ):
        monkeypatch.setattr("condinst_infer.system.hardware.usable_cores", lambda n=cores: n)
        for given, workers in ((None, expected), (5, 5)):
            chosen = RunOptions(
                device=None,
                runtime=None,
                precision=None,
                workers=given,
                threads=threads,
                batch=batch,
            )
            assert chosen.workers_for(images) == workers


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
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


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
    status, text, _ = condinst("predict", bright_model, *sources, "-o", out, "--format", "none")
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
