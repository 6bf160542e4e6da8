"""The tail of export/examples in C++, against the package's own."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condinst_infer.config.model import CondInstConfig
from tests.support.detector_outputs import (
    NETWORKS,
    VARIANTS,
    assert_same,
    network_outputs,
    random_outputs,
    variant,
    wanted,
)

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tail.hpp in a program that checks what it reads and writes."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    program = tmp_path_factory.mktemp("tail") / "tail"
    command = [
        *("g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"),
        *("-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        *(f"-I{ROOT / 'export/examples'}", ROOT / "tests/support/tail_program.cpp", "-o", program),
    ]
    subprocess.run(command, check=True)
    return program


def cpp_inputs(outputs: Mapping[str, Any], index: int, path: Path) -> None:
    """Write one image's outputs as tests/support/tail_program.cpp reads them."""
    names = ("boxes", "scores", "labels", "locations")
    tensors = [outputs[f"candidate_{name}"][index] for name in names]
    tensors += [outputs[name][index] for name in ("params_map", "mask_features")]
    metadata = str(outputs["metadata"]).encode()
    sizes = [outputs[name][index] for name in ("image_sizes", "original_sizes")]
    shapes = [len(tensors[0]), *tensors[4].shape, *tensors[5].shape, *sizes[0], *sizes[1]]
    head = np.array([*shapes, len(metadata)], np.int32)
    path.write_bytes(head.tobytes() + metadata + b"".join(map(np.ndarray.tobytes, tensors)))


def assert_cpp_finds_the_same(
    program: Path, outputs: Mapping[str, Any], config: CondInstConfig, folder: Path
) -> None:
    paths = [folder / str(index) for index in range(3)]
    for index, path in enumerate(paths):
        cpp_inputs(outputs, index, path)
    done = subprocess.run([program, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for index, path in enumerate(paths):
        found = json.loads(path.with_suffix(".json").read_text())
        assert_same(found, wanted(outputs, config, index))
        assert bool(found) == (index != 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_cpp_finds_what_the_package_finds(name: str, cpp_program: Path, tmp_path: Path) -> None:
    outputs = random_outputs(variant(name), seed=len(name) % 2)
    assert_cpp_finds_the_same(cpp_program, outputs, variant(name), tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_cpp_finishes_every_network(name: str, cpp_program: Path, tmp_path: Path) -> None:
    assert_cpp_finds_the_same(cpp_program, *network_outputs(name), tmp_path)


@pytest.mark.parametrize(
    ("text", "replacement", "words"),
    [
        ('"mask_head_depth": 3', '"mask_head_depth": 2', "not have the channels that the metadata"),
        ('"head_levels": [3, 4, 5]', '"head_levels": [3, 4]', "not have the locations"),
        ('"nms": "box"', '"nms": "mask"', "tail.hpp finishes files with box NMS"),
        ('"nms_iou"', '"other"', "the metadata has no field nms_iou"),
    ],
)
def test_cpp_refuses_metadata_of_another_file(
    text: str, replacement: str, words: str, cpp_program: Path, tmp_path: Path
) -> None:
    outputs = random_outputs(variant("nano"))
    metadata = str(outputs["metadata"])
    assert text in metadata
    outputs["metadata"] = metadata.replace(text, replacement)
    cpp_inputs(outputs, 0, tmp_path / "0")
    done = subprocess.run([cpp_program, tmp_path / "0"], capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr
