"""The tail of export/examples in numpy against the package's own."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from condinst_infer.config.model import Size, override
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.model_file import model_path
from condinst_infer.processing.geometry import PlacedImage, place_image
from condinst_infer.processing.postprocess import BatchOutputs, instances_from_outputs
from condinst_infer.processing.preprocess import read_image, resize, stack_images
from condinst_infer.processing.tail import full_from_detector
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.runtimes.ort import OrtSession
from tests.support.detector_outputs import (
    CANVAS,
    IMAGE_SIZES,
    NET_SIZES,
    NETWORKS,
    VARIANTS,
    assert_same,
    network_outputs,
    random_outputs,
    variant,
    wanted,
)
from tests.support.example_instances import assert_same_instances
from tests.support.examples import EXAMPLES, run_without_package, write_nuclei_png
from tests.support.nms_reference import greedy_nms, random_scene

ROOT = Path(__file__).parents[2]
EXAMPLE = EXAMPLES / "tail.py"


def _example() -> Any:
    """The module export/examples/tail.py."""
    spec = importlib.util.spec_from_file_location("example_tail", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tail = _example()


@pytest.mark.parametrize("name", VARIANTS)
def test_numpy_finds_what_the_package_finds(name: str) -> None:
    config = variant(name)
    outputs = random_outputs(config, seed=len(name) % 2)
    counts = []
    for index in range(3):
        found = list(tail.instances(outputs, index))
        assert_same(found, wanted(outputs, config, index))
        counts.append(len(found))
    assert min(counts[:2]) > counts[2] == 0 and max(counts) <= config.detect.max_detections


def test_box_nms_decides_ties_and_exact_overlaps_as_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(6):  # a third of them on a grid
        scene = random_scene(random, batch=1, slots=90, classes=2)
        for most in (5, 200):
            kept = tail.class_nms(*(part[0] for part in scene), 0.5, most)
            keep, count = greedy_nms(scene, threshold=0.5, keep=most)
            assert kept == keep[0, : count[0]].tolist()


def test_maps_in_float16_give_the_masks_of_a_file_in_float16() -> None:
    config = variant("nano")
    outputs = random_outputs(config)
    outputs |= {k: outputs[k].astype(np.float16) for k in ("params_map", "mask_features")}
    full = full_from_detector(outputs, config)
    assert full["masks"].dtype == np.float16
    placed = PlacedImage(np.zeros((*IMAGE_SIZES[0], 3), np.uint8), NET_SIZES[0], CANVAS)
    masks = instances_from_outputs(BatchOutputs(full), 0, placed, config).masks
    found = [one["mask"] for one in tail.instances(outputs)]
    # measured 0; 1.4e-4 where the probabilities stay float32
    assert len(found) == len(masks) and (np.stack(found) != masks).mean() < 1e-5


def nuclei_detector() -> OrtSession:
    """The detector cut of the shipped model."""
    path = model_path("nuclei")
    return OrtSession(path, graph=detector_from_full(path), threads=1)


def outputs_of(
    session: OrtSession, images: list[np.ndarray], net_sizes: list[Size], canvas: Size
) -> dict[str, Any]:
    """Outputs of a detector cut for BGR images, resized to `net_sizes`, as tail.py takes them."""
    batch, sizes = stack_images([*map(resize, images, net_sizes)], canvas)
    return {
        **session.run({"images": batch, "image_sizes": sizes}),
        "image_sizes": sizes,
        "original_sizes": np.array([image.shape[:2] for image in images], np.int32),
        "metadata": np.array(session.metadata.to_props()["condinst"]),
    }


def test_the_shipped_model_finds_the_same_in_a_batch() -> None:
    picture = read_image(ROOT / "condinst_infer/data/nuclei.jpg")
    images = [picture[:78, :130], picture[200:261, 300:397], np.zeros((50, 50, 3), np.uint8)]
    session = nuclei_detector()
    outputs = outputs_of(session, images, [(96, 160), (75, 119), (61, 61)], CANVAS)
    config, counts = session.metadata.config, []
    for index in range(3):
        found = list(tail.instances(outputs, index))
        assert_same(found, wanted(outputs, config, index))
        counts.append(len(found))
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize(
    ("graph", "changes"), [("full", {}), ("detector", {"nms": "mask"})], ids=["full", "mask NMS"]
)
def test_other_files_are_refused_in_a_sentence(graph: str, changes: dict[str, Any]) -> None:
    metadata = Metadata(override(variant("nano"), **changes), graph=graph)
    outputs = random_outputs(variant("nano")) | {"metadata": metadata.to_props()["condinst"]}
    with pytest.raises(ValueError, match="tail.py finishes files of --graph detector with box NMS"):
        next(tail.instances(outputs))


def run_example(
    outputs: Mapping[str, Any], folder: Path, index: int = 1
) -> subprocess.CompletedProcess[str]:
    """A run of tail.py that can't import this package."""
    np.savez(folder / "outputs.npz", **outputs)
    words = (sys.executable, EXAMPLE, "outputs.npz", "-o", "instances.json", "--index", index)
    return run_without_package(*words, cwd=folder)


@pytest.mark.slow
def test_the_program_finds_all_nuclei(tmp_path: Path) -> None:
    path, session = write_nuclei_png(tmp_path), nuclei_detector()
    image = read_image(path)
    placed = place_image(image, session.metadata.config.input, None)
    outputs = outputs_of(session, [image], [placed.net_size], placed.canvas)
    done = run_example(outputs, tmp_path, index=0)
    assert done.returncode == 0, done.stderr
    assert assert_same_instances(tmp_path / "instances.json", "nuclei", path, exact=False) == 156


def test_the_program_writes_run_lengths(tmp_path: Path) -> None:
    config = variant("nano")
    outputs = random_outputs(config)
    done = run_example(outputs, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "instances.json").read_text())
    assert_same(found, wanted(outputs, config, 1))
    assert done.stdout == f"{len(found)} instances -> instances.json\n"


def test_the_example_imports_numpy_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(EXAMPLE.read_text())):
        if isinstance(node, ast.Import):
            names.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names - set(sys.stdlib_module_names) - {"collections.abc"} == {"numpy"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_numpy_finishes_every_network(name: str) -> None:
    outputs, config = network_outputs(name)
    for index in range(3):
        found = list(tail.instances(outputs, index))
        assert_same(found, wanted(outputs, config, index))
        assert bool(found) == (index != 2)


def test_a_file_of_another_kind_ends_the_program_without_a_traceback(tmp_path: Path) -> None:
    outputs = random_outputs(variant("nano"))
    outputs["metadata"] = Metadata(variant("nano")).to_props()["condinst"]  # of a full graph
    done = run_example(outputs, tmp_path)
    assert done.returncode == 2 and "error: tail.py finishes" in done.stderr.splitlines()[-1]
