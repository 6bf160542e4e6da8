"""export/examples/trtexec.md: its Python, around ONNX Runtime in the place of trtexec."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condinst_infer.cli.main import parse
from condinst_infer.runtimes.ort import OrtSession
from tests.support.example_instances import assert_same_instances

EXAMPLES = Path(__file__).parents[2] / "export" / "examples"
PAGE = (EXAMPLES / "trtexec.md").read_text()
TYPES = {"float32": "Float", "int32": "Int32"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def fake_trtexec(folder: Path, model: Path) -> None:
    """Inputs and outputs as raw files, named as trtexec names them."""
    session = OrtSession(model)
    feeds = {
        "images": np.fromfile(folder / "images.raw", np.uint8).reshape(1, 640, 864, 3),
        "image_sizes": np.fromfile(folder / "image_sizes.raw", np.int32).reshape(1, 2),
    }
    for name, values in session.run(feeds).items():
        shape = ".".join(map(str, values.shape))
        values.tofile(folder / f"{name}.output.{shape}.{TYPES[values.dtype.name]}.raw")


@pytest.mark.slow
def test_the_python_of_the_page_feeds_an_engine_and_reads_what_it_writes(
    tmp_path: Path, demo_folder: Path
) -> None:
    for source in (EXAMPLES / "onnxruntime_python.py", demo_folder / "nuclei.onnx"):
        shutil.copy(source, tmp_path)
    with Image.open(demo_folder / "nuclei.jpg") as image:
        image.save(tmp_path / "nuclei.png")
    prepare, collect = blocks("python")
    for program in (prepare, prepare + collect):
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env={"PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.split() == ["images:1x640x864x3", "image_sizes:1x2"]
        fake_trtexec(tmp_path, tmp_path / "nuclei.onnx")
    found = tmp_path / "instances.json"
    assert assert_same_instances(found, "nuclei", tmp_path / "nuclei.png", exact=True) == 156
    assert (tmp_path / "masks.output.1.500.320.432.Float.raw").exists()


def test_commands_of_the_page_name_inputs_and_options_that_exist() -> None:
    build, by_trtexec, run = blocks("sh")
    words = build.split()
    assert words[0] == "condinst"
    parse(words[1:])
    for command in (by_trtexec, run):
        assert command.startswith("trtexec ")
        for name, option in re.findall(r"--(\w*[sS]hapes)=(\S+)", command):
            sides = dict(entry.split(":") for entry in option.split(","))
            assert sides["image_sizes"] == "1x2", name
            n, height, width, channels = map(int, sides["images"].split("x"))
            assert (n, height % 32, width % 32, channels) == (1, 0, 0, 3), name
    assert "--loadInputs=images:images.raw,image_sizes:image_sizes.raw" in run
