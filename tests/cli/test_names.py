"""Names of files in every argument of every verb: odd names, and things that are no files."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from condinst_infer.system.paths import printable
from tests.support.command_line import Run
from tests.support.odd_things import THINGS
from tests.support.permissions import under_permissions

TOO_SLOW = 5.0  # seconds: a FIFO is waited for without end

# BAD with its suffix is the argument under test; DIR a folder that is read
COMMANDS = [
    "predict BAD.onnx photo.jpg -o out",
    "predict BAD.safetensors photo.jpg -o out",
    "predict BAD.engine photo.jpg -o out",
    "predict BAD.onnx photo.jpg -o out --runtime openvino",
    "predict model.onnx BAD.jpg -o out",
    "predict model.onnx BAD.txt -o out",
    "predict model.onnx BAD.mp4 -o out",
    "predict model.onnx BAD -o out",
    "predict model.onnx BAD/*.jpg -o out",
    "eval BAD.onnx --annotations gt.json --images .",
    "eval BAD.json --annotations gt.json",
    "eval dets.json --annotations BAD.json",
    "eval model.onnx --annotations gt.json --images BAD",
    "eval BAD.json --annotations panoptic.json --panoptic",
    "eval dets.json --annotations BAD.json --panoptic",
    "eval segments.json --annotations panoptic.json --panoptic --pngs BAD",
    "train condinst_nano --train BAD.json --images . -o run",
    "train condinst_nano --train gt.json --images BAD -o run",
    "train condinst_nano --train gt.json --images . --val BAD.json -o run",
    "train condinst_nano --train gt.json --images . --init BAD.safetensors -o run",
    "train condinst_nano --train gt.json --images . --init BAD.pth -o run",
    "export BAD.safetensors -o out.onnx",
    "export BAD.onnx -o out.onnx --standard-ops",
    "export BAD.onnx -o out.onnx --metadata-from model.onnx",
    "export model.onnx -o out.onnx --metadata-from BAD.onnx",
    "export BAD.onnx --triton repository",
    "export model.safetensors -o out.onnx --precision int8 --calibration BAD.jpg",
    "import BAD.pth -o out.safetensors",
    "import BAD.safetensors -o out.safetensors",
    "import weights.pth --config BAD.yaml -o out.safetensors",
    "info BAD.onnx",
    "info BAD.engine",
    "info BAD.safetensors",
    "info BAD.onnx --contract",
    "compare BAD.onnx model.onnx",
    "compare model.onnx BAD.onnx",
    "compare model.onnx BAD.safetensors",
    "bench BAD.onnx",
    "bench model.onnx --image BAD.jpg",
    "bench model.onnx --annotations BAD.json --images . --image photo.jpg --size 64x64 --repeats 1",
    "build BAD.onnx -o out.engine",
    "convert cityscapes BAD -o out --split val",
    "serve BAD.onnx --port 0",
]
RARE = ("255 bytes", "5000 bytes", "long folders", "dangling", "/dev/null")  # as another
QUICK = "eval dets.json --annotations BAD.json"  # the others are slow


@pytest.fixture
def folder(tmp_path: Path, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a model, its checkpoint, a photograph, annotations and results."""
    for name in ("onnx", "safetensors"):
        shutil.copy(demo_folder / f"nuclei.{name}", tmp_path / f"model.{name}")
    shutil.copy(demo_folder / "nuclei.jpg", tmp_path / "photo.jpg")
    image = {"id": 1, "file_name": "photo.jpg", "height": 520, "width": 696}
    category = {"id": 1, "name": "nucleus", "isthing": 1}
    ring = [10, 10, 60, 10, 60, 60]
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 1250}
    rows = [{**row, "iscrowd": 0, "segmentation": [ring]}]
    truth = {"images": [image], "annotations": rows, "categories": [category]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    segments = {"image_id": 1, "file_name": "photo.png", "segments_info": []}
    (tmp_path / "panoptic.json").write_text(json.dumps({**truth, "annotations": [segments]}))
    (tmp_path / "segments.json").write_text(json.dumps({**truth, "annotations": [segments]}))
    (tmp_path / "dets.json").write_text("[]")
    torch.save({"bbox_head.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    (tmp_path / "segments").mkdir()
    Image.new("RGB", (696, 520)).save(tmp_path / "segments/photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(command: str, kind: str, folder: Path, condinst: Run) -> None:
    """One sentence on stderr, soon, and the exit status of a command that can't be carried out."""
    name, put = THINGS[kind]
    words = [word.replace("BAD", name) for word in command.split()]
    suffix = next(word for word in command.split() if word.startswith("BAD"))[3:].partition("/")[0]
    put(folder / f"{name}{suffix}")
    start = time.perf_counter()
    status, out, err = under_permissions(lambda: condinst(*words))
    seconds = time.perf_counter() - start
    if kind == "closed folder":
        (folder / "closed").chmod(0o700)
    assert status == 2, (status, out, err)
    assert err.startswith("condinst: ") and err.count("\n") == 1 and len(err) < 1500, err
    assert printable(name)[:100].replace("\0", "\\x00") in err, err
    assert seconds < TOO_SLOW


@pytest.mark.parametrize(
    "kind",
    [kind if kind not in RARE else pytest.param(kind, marks=pytest.mark.long) for kind in THINGS],
)
@pytest.mark.parametrize(
    "command",
    [
        command if command == QUICK else pytest.param(command, marks=pytest.mark.slow)
        for command in COMMANDS
    ],
)
def test_a_name_that_can_not_be_read_is_one_sentence(
    command: str, kind: str, folder: Path, condinst: Run
) -> None:
    check(command, kind, folder, condinst)
