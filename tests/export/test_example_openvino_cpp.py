"""The C++ program of export/examples with OpenVINO: built under sanitizers, run on pictures."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import PIL
import pytest

from condinst_infer import checkpoint
from condinst_infer.contract.model_file import model_path
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.processing.preprocess import read_image
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.verification.rewritten import write_standard_ops
from tests.support.example_instances import assert_same_instances

ROOT = Path(__file__).parents[2]
DATA = ROOT / "condinst_infer/data"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
pytestmark = pytest.mark.slow


def ran(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, which ends at the first warning of the compiler or a sanitizer."""
    missing = [name for name in ("cmake", "g++") if shutil.which(name) is None]
    if importlib.util.find_spec("openvino") is None:
        missing.append("the package openvino")
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    from openvino.utils import get_cmake_path

    folder = tmp_path_factory.mktemp("build")
    done = ran(
        *("cmake", "-S", ROOT / "export/examples/openvino_cpp", "-B", folder),
        *("-D", f"OpenVINO_DIR={get_cmake_path()}", "-D", "CMAKE_BUILD_TYPE=None"),
        *("-D", f"CMAKE_CXX_FLAGS=-O1 -Werror {SANITIZERS}"),
    )
    if "OpenCVConfig.cmake" in done.stderr:
        pytest.skip("missing: OpenCV for C++ (libopencv-dev)")
    assert done.returncode == 0, done.stderr
    done = ran("cmake", "--build", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "condinst_openvino"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model in forms that OpenVINO reads, and its picture as PNG."""
    folder = tmp_path_factory.mktemp("files")
    names = ("standard.onnx", "detector.onnx", "nuclei.png", "tall.png", "black.png")
    paths = {name: folder / name for name in names}
    shipped = model_path("nuclei")
    assert write_standard_ops(shipped, paths["standard.onnx"]).ok
    detector = detector_from_full(shipped)
    assert detector
    paths["detector.onnx"].write_bytes(detector)
    picture = read_image(DATA / "nuclei.jpg")
    for name, image in (
        ("nuclei.png", picture),
        ("tall.png", picture.transpose(1, 0, 2)[:, :200]),
        ("black.png", np.zeros((37, 50, 3), np.uint8)),
    ):
        assert cv2.imwrite(str(paths[name]), image)
    return paths


def run_program(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    # else oneTBB loads a library in a way that the address sanitizer does not allow; and at times
    # it leaves 40 bytes of its own at the end
    others = program.with_name("leaks.txt")
    others.write_text("leak:libtbb\n")
    leaks = f"suppressions={others}:print_suppressions=0"
    return ran(program, *words, TBB_ENABLE_SANITIZERS="1", LSAN_OPTIONS=leaks)


@pytest.mark.parametrize("name", ["standard.onnx", "detector.onnx"])
def test_all_nuclei_are_found(
    name: str, program: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    image, found, overlay = files["nuclei.png"], tmp_path / "found.json", tmp_path / "overlay.png"
    done = run_program(program, files[name], image, "-o", found, "--overlay", overlay)
    assert done.returncode == 0, done.stderr
    assert assert_same_instances(found, model_path("nuclei"), image, exact=False) == 156
    lines = done.stdout.splitlines()
    assert len(lines) == 157 and lines[-1] == "156 instances"
    first = json.loads(found.read_text())[0]
    box = " ".join(f"{side:.1f}" for side in first["box"])
    assert lines[0] == f"label 0, score {first['score']:.3f}, box {box}"
    pictures = [read_image(path) for path in (image, overlay)]
    assert pictures[0].shape == pictures[1].shape
    assert 0.05 < (pictures[0] != pictures[1]).any(2).mean() < 0.5


@pytest.fixture(scope="module")
def static_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A full file with one size, and the detector cut of it."""
    folder = tmp_path_factory.mktemp("static")
    full, cut = folder / "full.onnx", folder / "detector.onnx"
    export_onnx(checkpoint.load(DATA / "nuclei.safetensors"), full, size=(352, 448), batch=1)
    cut.write_bytes(detector_from_full(full) or b"")
    return full, cut


@pytest.mark.parametrize(("name", "fewest"), [("nuclei.png", 100), ("tall.png", 10)])
def test_a_fixed_canvas_shrinks_the_picture(
    name: str,
    fewest: int,
    program: Path,
    files: dict[str, Path],
    static_files: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    if name == "tall.png" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 shrinks tall pictures in the other order of axes")
    (full, cut), image, found = static_files, files[name], tmp_path / "found.json"
    done = run_program(program, cut, image, "-o", found)
    assert done.returncode == 0, done.stderr
    assert assert_same_instances(found, full, image, exact=False) > fewest


def test_a_picture_without_any_nucleus(
    program: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    done = run_program(program, files["detector.onnx"], files["black.png"], "-o", found)
    assert done.returncode == 0 and done.stdout == "0 instances\n", done.stderr
    assert found.read_text() == "[]\n"


def test_what_it_cannot_do_is_said_in_a_line(
    program: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    bare = onnx.load(files["detector.onnx"])
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    for words, said in (
        ((files["detector.onnx"],), "usage: condinst_openvino MODEL.onnx IMAGE.png"),
        ((files["detector.onnx"], tmp_path / "none.png"), "none.png can't be read"),
        ((tmp_path / "bare.onnx", files["black.png"]), "has no metadata of condinst export"),
    ):
        done = run_program(program, *words)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1]
