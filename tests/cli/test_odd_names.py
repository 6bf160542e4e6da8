"""Names that are no UTF-8, closed folders and lists: the work that goes on, and its results."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from condinst_infer import checkpoint
from condinst_infer.cli.sources import image_files, media
from condinst_infer.errors import InputError
from condinst_infer.video.sources import open_source
from condinst_infer.video.writer import video_recorder
from tests.support.command_line import Run, assert_refused
from tests.support.permissions import under_permissions
from tests.support.video_files import write_video

ODD = os.fsdecode(b"photo\xe9")  # in Latin-1


@pytest.fixture
def odd_photos(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with photos of odd names in a folder of an odd name."""
    (photos / ODD).mkdir()
    for name in (f"{ODD}.png", f"{ODD}/b.png"):
        shutil.copy(photos / "a.png", photos / name)
    monkeypatch.chdir(tmp_path)
    return photos


def predict(condinst: Run, model: Path | str, *words: str) -> str:
    status, _, err = condinst("predict", model, *words, "--json", "--threads", 1)
    assert (status, err) == (0, "")
    return err


@pytest.mark.parametrize("format_", ["coco", "coco-dataset", "yolo", "labelme"])
def test_results_name_files_whose_names_are_no_utf8(
    format_: str, odd_photos: Path, bright_model: Path, condinst: Run
) -> None:
    """JSON has the bytes as escapes of surrogates, which `os.fsencode` turns into bytes again."""
    predict(condinst, bright_model, "photos", "-o", ODD, "--format", format_)
    assert Path(ODD, f"{ODD}.png").is_file() and Path(ODD, ODD, "b.png").is_file()
    if format_ == "coco":
        rows = json.loads(Path(ODD, "detections.json").read_text("ascii"))
        assert f"{ODD}.png" in {row["file_name"] for row in rows}
    if format_ == "coco-dataset":
        content = json.loads(Path(ODD, "annotations.json").read_text("ascii"))
        names = {image["file_name"] for image in content["images"]}
        assert {f"{ODD}.png", f"{ODD}/b.png"} < names
        assert os.fsencode(f"{ODD}.png") == b"photo\xe9.png"
        Path(f"{ODD}.json").write_text(json.dumps(content))
        command = ("eval", bright_model, "--annotations", f"{ODD}.json", "--images", "photos")
        status, out, err = condinst(*command, "--json")
        assert status == 0 and json.loads(out)["mask"]["AP"] > 50, err
    if format_ == "yolo":
        assert Path(ODD, "labels", f"{ODD}.txt").is_file()
    if format_ == "labelme":
        content = json.loads(Path(ODD, ODD, "b.json").read_text("ascii"))
        assert (Path(ODD, ODD) / content["imagePath"]).resolve() == (odd_photos / ODD / "b.png")


@pytest.mark.slow
def test_lines_about_odd_names_have_escapes(
    odd_photos: Path, bright_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "condinst_infer", "predict", bright_model, "photos"]
    for encoding, name in (("utf-8", "b"), ("ascii:strict", "c")):
        done = subprocess.run(
            [*command, f"{ODD}-gone.png", "-o", name],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 1 and b"photos/photo\\udce9.png: 1 instances" in done.stdout
        assert done.stderr == b"condinst: photo\\xe9-gone.png does not exist.\n"


@pytest.mark.slow
def test_models_of_odd_names(
    odd_photos: Path, bright_model: Path, demo_folder: Path, condinst: Run
) -> None:
    shutil.copy(bright_model, f"{ODD}.onnx")
    for words in ([], ["--runtime", "openvino"]):
        predict(condinst, f"{ODD}.onnx", "photos/a.png", "-o", "out", *words)
    shutil.copy(demo_folder / "nuclei.safetensors", f"{ODD}.safetensors")
    said = "safetensors takes no name that is not UTF-8; rename the file or its folder"
    for command in (
        ("predict", f"{ODD}.safetensors", "photos/a.png", "-o", "out"),
        ("export", f"{ODD}.safetensors", "-o", "out.onnx"),
        ("import", f"{ODD}.safetensors", "-o", "out.safetensors"),
    ):
        assert_refused(condinst(*command), f"photo\\xe9.safetensors: {said}")
    assert not checkpoint.is_ours(Path(f"{ODD}.safetensors"))


def test_videos_of_odd_names_are_refused(
    tmp_path: Path, bright_model: Path, condinst: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV 5 ends the process."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", frames=2)
    shutil.copy("a.mp4", f"{ODD}.mp4")
    said = "takes no name that is not UTF-8"
    for source in (f"{ODD}.mp4", f"rtsp://host/{ODD}"):
        with pytest.raises(InputError, match=f"photo.xe9.* OpenCV's video reader {said}"):
            open_source(source, reconnect=0, max_pixels=10**6)
    with (
        pytest.raises(InputError, match=f"photo.xe9.* OpenCV's video writer {said}"),
        video_recorder(tmp_path / ODD / "a.mp4", 25.0) as recorder,
    ):
        recorder.write(np.zeros((32, 32, 3), np.uint8), 0)
    assert list(Path(ODD).iterdir()) == []
    command = ("predict", bright_model, "a.mp4", f"{ODD}.mp4", "-o")
    assert_refused(condinst(*command, ODD), f"OpenCV's video writer {said}")
    status, _, err = condinst(*command, "out")
    assert status == 1 and err.count("\n") == 1 and said in err, err
    assert Path("out/a.mp4").is_file()


def test_a_closed_folder_costs_no_other_image(
    photos: Path, bright_model: Path, condinst: Run, tmp_path: Path
) -> None:
    (photos / "closed").mkdir(mode=0)
    command = ("predict", bright_model, photos, "-o", tmp_path / "out", "--json")
    status, out, err = under_permissions(lambda: condinst(*command))
    assert status == 1
    assert err == f"condinst: the folder {photos}/closed can't be read: Permission denied.\n"
    report = json.loads(out)
    assert len(report["images"]) == 3
    assert [failure["file"] for failure in report["failed"]] == [f"{photos}/closed"]
    status, out, err = under_permissions(lambda: condinst(*command[:-1]))
    assert status == 1 and ", 1 skipped" in out
    # alone it is an error, and so it is where nothing is said of what was left out
    said = "closed can't be read: Permission denied"
    closed = ("predict", bright_model, photos / "closed", "-o", tmp_path / "new")
    assert_refused(under_permissions(lambda: condinst(*closed)), said)
    with pytest.raises(InputError, match=said):
        under_permissions(lambda: image_files([str(photos)], tmp_path / "out"))
    source = under_permissions(lambda: open_source(photos, reconnect=0, max_pixels=10**6))
    assert (source.count, source.broken) == (3, 1)
    (photos / "closed").chmod(0o700)


def test_bad_names_cost_no_other_image(photos: Path, tmp_path: Path) -> None:
    """Among several sources, a name that can't be is one that reading tells of."""
    loop = tmp_path / "loop.png"
    loop.symlink_to("loop.png")
    sources = [str(photos / "a.png"), "a" * 5000 + ".png", "a\0b.png", str(loop), "none/*.jpg"]
    images, videos, problems = media(sources[:-1], tmp_path / "out")
    assert [str(image.path) for image in images] == sources[:-1]
    assert videos == [] and problems == []
    with pytest.raises(InputError, match=r"there are no files that match none/\*.jpg"):
        media(sources, tmp_path / "out")


def test_one_bad_image_among_others(
    photos: Path, bright_model: Path, condinst: Run, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    names = [tmp_path / "fifo.png", tmp_path / ("a" * 300 + ".png"), photos / "a.png"]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names))
    command = ("predict", bright_model, tmp_path / "list.txt", "-o", tmp_path / "out")
    status, out, err = condinst(*command)
    assert status == 1 and "1 images, 1 instances, 2 skipped" in out
    assert "fifo.png is a FIFO, not a file." in err and "File name too long." in err


def test_class_names_are_read_from_a_file(tmp_path: Path) -> None:
    from condinst_infer.cli.import_ import _rename_classes
    from condinst_infer.config.presets import preset

    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(InputError, match="names.txt is a FIFO, not a file"):
        _rename_classes(preset("condinst_nano"), tmp_path / "names.txt")


@pytest.mark.slow
def test_annotations_come_through_an_open_pipe(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    truth = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "dets.json").write_text("[]")
    command = [sys.executable, "-m", "condinst_infer", "eval", "dets.json", "--annotations"]
    done = subprocess.run(
        [*command, "/dev/stdin"],
        input=json.dumps(truth).encode(),
        capture_output=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout.startswith(b"1 images"), done.stderr


def test_the_same_photo_under_two_names_is_one(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("photos")
    (photos / "again.png").symlink_to("a.png")
    cv2.imwrite(str(photos / "d.png"), np.zeros((4, 4, 3), np.uint8))
    found = image_files([str(photos), str(tmp_path / "link")], tmp_path / "out")
    assert [file.path.name for file in found] == ["12.jpg", "a.png", "a.png", "d.png"]
