"""Outputs of every verb: a bad one is refused before the work, and nothing is destroyed."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import Run, assert_refused

# command, what lies at out, and what is said of it; DATA holds the model that ships
PLACES = [
    ("demo -o out.jpg", "folder", "is a folder; give the name of a file"),
    ("demo -o out.jpg", "FIFO", "is a FIFO; give the name of a file"),
    ("demo -o out.jpg", "device", "is a device; give the name of a file"),
    ("demo -o /dev/null", "", "is a device; give the name of a file"),
    ("bench nuclei -o out.json", "folder", "is a folder; give the name of a file"),
    ("bench model.onnx -o model.onnx", "", "would overwrite the input model.onnx"),
    ("bench nuclei --image photo.jpg -o photo.jpg", "", "would overwrite the input photo.jpg"),
    ("eval dets.json --annotations gt.json --detections gt.json", "", "would overwrite the input"),
    ("eval dets.json --annotations gt.json --detections dets.json", "", "would overwrite"),
    ("eval dets.json --annotations gt.json --detections link.json", "", "would overwrite"),
    ("eval dets.json --annotations gt.json --detections out.json", "folder", "is a folder"),
    ("export model.safetensors -o out.onnx", "folder", "is a folder; give the name of a file"),
    ("export model.safetensors -o out.onnx", "device", "is a device; give the name of a file"),
    ("export model.onnx -o model.onnx --standard-ops", "", "would overwrite the input model.onnx"),
    ("export model.onnx --triton photo.jpg", "", "is a file; give the name of a folder"),
    ("build model.onnx -o out.engine", "folder", "is a folder; give the name of a file"),
    ("build model.onnx -o new.engine --timing-cache model.onnx", "", "would overwrite the input"),
    ("build model.onnx -o new.engine --timing-cache new.engine", "file", ""),
    ("import model.safetensors -o model.safetensors", "", "would overwrite the input"),
    ("import weights.pth -o out.safetensors", "FIFO", "is a FIFO; give the name of a file"),
    ("predict nuclei photo.jpg -o photo.jpg", "", "is a file; give the name of a folder"),
    ("predict nuclei photo.jpg -o photo.jpg/below", "", "photo.jpg is a file, not a folder"),
    ("predict nuclei photo.jpg -o out", "FIFO", "give the name of a folder"),
    ("train condinst_nano --train gt.json --images . -o gt.json", "", "is a file; give the name"),
    ("convert cityscapes . -o photo.jpg", "", "is a file; give the name of a folder"),
    ("capi build -o photo.jpg", "", "is a file; give the name of a folder"),
    ("doctor --gpu-check -o out.json", "folder", "is a folder; give the name of a file"),
]
PUT = {
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/null"),
    "file": Path.touch,
}


@pytest.fixture
def folder(tmp_path: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model, its checkpoint, a photograph, annotations and detections."""
    for name in ("onnx", "safetensors"):
        shutil.copy(demo_folder / f"nuclei.{name}", tmp_path / f"model.{name}")
    shutil.copy(demo_folder / "nuclei.jpg", tmp_path / "photo.jpg")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dets.json").write_text("[]")
    (tmp_path / "link.json").symlink_to("gt.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, object]:
    """Everything in a folder: of files their bytes, of the rest what it is."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        found[str(path.relative_to(folder))] = (
            path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
        )
    return found


@pytest.mark.parametrize(("command", "thing", "said"), [case for case in PLACES if case[2]])
def test_an_output_that_cannot_be_is_refused_before_the_work(
    command: str, thing: str, said: str, folder: Path, condinst: Run
) -> None:
    if thing:
        PUT[thing](folder / next(word for word in command.split() if word.startswith("out")))
    before = content(folder)
    assert_refused(condinst(*command.split()), said)
    assert content(folder) == before
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_text_goes_to_a_device_and_through_a_fifo(folder: Path, condinst: Run) -> None:
    command = ("eval", "dets.json", "--annotations", "gt.json", "--detections")
    (folder / "gt.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "photo.jpg", "height": 8, "width": 8}],
                "annotations": [],
                "categories": [{"id": 1, "name": "nucleus"}],
            }
        )
    )
    status, _, err = condinst(*command, "/dev/null")
    assert (status, err) == (0, "") and stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(folder / "fifo")
    with subprocess.Popen(["cat", "fifo"], stdout=subprocess.PIPE, text=True) as reader:
        assert condinst(*command, "fifo")[0] == 0
        assert reader.communicate()[0] == "[]\n"
    assert condinst(*command, "link to new")[0] == 0


@pytest.mark.parametrize("name", ["a" * 251 + ".jpg", "ä" * 123 + ".jpg", "b" * 244 + ".jpg"])
def test_results_of_images_with_long_names(name: str, folder: Path, condinst: Run) -> None:
    images = folder / "images"
    images.mkdir()
    for each in (name, "short.jpg"):
        shutil.copy(folder / "photo.jpg", images / each)
    status, _, err = condinst("predict", "nuclei", "images", "-o", "found", "--json")
    assert (status, err) == (0, "")
    assert {path.name for path in (folder / "found").iterdir()} == {
        name, "short.jpg", "detections.json",
    }  # fmt: skip


def test_what_is_being_written_is_no_source(folder: Path, condinst: Run) -> None:
    images = folder / "images"
    images.mkdir()
    for name in ("a.jpg", ".condinst-00000000-1-0.jpg"):
        shutil.copy(folder / "photo.jpg", images / name)
    for source in ("images", "images/.*", "images/*"):
        status, text, _ = condinst("predict", "nuclei", source, "-o", "found")
        if source == "images/.*":
            assert status == 2
        else:
            assert status == 0 and "1 images" in text and ".condinst" not in text


def test_an_image_whose_results_cannot_be_written_costs_no_other(
    folder: Path, condinst: Run
) -> None:
    images, found = folder / "images", folder / "found"
    images.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shutil.copy(folder / "photo.jpg", images / name)
    (found / "b.jpg").mkdir(parents=True)
    status, text, err = condinst("predict", "nuclei", "images", "-o", "found")
    assert status == 1 and err == "condinst: found/b.jpg is a folder; give the name of a file.\n"
    assert "2 images" in text and "1 skipped" in text
    names = {row["file_name"] for row in json.loads((found / "detections.json").read_text())}
    assert names == {"a.jpg", "c.jpg"} and (found / "c.jpg").is_file()


def run(*words: object, shell: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """`condinst` as a process of its own; `shell` redirects its streams."""
    command = [sys.executable, "-m", "condinst_infer", *map(str, words)]
    line = f'exec "$@" {shell}'
    root = Path(__file__).parents[2]
    return subprocess.run(
        ["sh", "-c", line, "sh", *command],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}, **options,  # pyright: ignore
    )  # fmt: skip


@pytest.mark.slow
def test_standard_output_that_is_closed_full_or_without_a_reader(tmp_path: Path) -> None:
    assert run("presets", shell=">&-").returncode == 0
    assert run("presets", shell="2>&-").returncode == 0
    for words in (["presets"], ["demo", "-o", tmp_path / "a.jpg"], ["--help"]):
        done = run(*words, shell="> /dev/full")
        said = "condinst: standard output can't be written: No space left on device.\n"
        assert (done.returncode, done.stderr) == (2, said)
    assert (tmp_path / "a.jpg").stat().st_size > 1000
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "condinst_infer", "presets"],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    said = "condinst: standard output can't be written: Broken pipe.\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert run("presets", shell="> /dev/full 2>&1").returncode == 2
    assert run("info", "missing.onnx", shell=">&- 2>&-").returncode == 2


@pytest.mark.slow
def test_a_working_folder_that_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "condinst_infer", "demo"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.endswith(
        "condinst: the working folder was deleted; go to another one: cd\n"
    )
