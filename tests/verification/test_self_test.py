"""The golden outputs in an exported file: every runtime gives them, and a broken one does not."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import onnx
import pytest

from condinst_infer import checkpoint
from condinst_infer.contract.metadata import props_from_onnx
from condinst_infer.errors import ModelFileError, ParityError
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification import self_test
from condinst_infer.verification.intermediates import TorchIntermediates

Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["nano_onnx", "detector_onnx"])
def file(
    request: pytest.FixtureRequest, nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An exported file with golden outputs."""
    source = request.getfixturevalue(request.param)
    path = Path(copy(source, tmp_path_factory.mktemp("golden") / f"{request.param}.onnx"))
    self_test.store(path, TorchIntermediates(checkpoint.load(nano_checkpoint)), OrtSession(path))
    return path


def stored(path: Path) -> self_test.SelfTest:
    found = self_test.self_test_from_props(props_from_onnx(path.read_bytes(), path), path)
    assert found is not None
    return found


class Changed(OrtSession):
    """A runtime that does one thing wrong."""

    def __init__(self, path: Path, change: Callable[[Outputs], object]) -> None:
        super().__init__(path, threads=1)
        self._change = change

    def run(self, feeds: Mapping[str, np.ndarray]) -> Outputs:
        outputs = super().run(feeds)
        self._change(outputs)
        return outputs


def test_the_file_itself_has_them_and_stays_what_it_was(file: Path, nano_onnx: Path) -> None:
    expected = stored(file)
    assert not expected.tied and expected.counts[0] >= 20
    self_test.check(OrtSession(file, threads=1), expected)
    assert len(expected.to_props()[self_test.KEY]) < 8000
    if "nano" in file.name:
        proto, before = onnx.load(file), onnx.load(nano_onnx)
        del proto.metadata_props[-2:]
        assert proto == before


def test_the_input_is_within_what_an_engine_takes_and_the_same_everywhere(file: Path) -> None:
    expected = stored(file)
    assert expected.shape == (1, 128, 192)  # of a photograph of 640x480 in this model
    feeds = self_test._generate_input((3, 64, 96), 1)
    assert feeds["image_sizes"].tolist() == [[64, 96], [57, 85], [50, 74]]
    # the numbers of this machine: they must be those of every other
    assert self_test._digest(feeds)[:16] == "4b12ee7ed3201d65"


def shifted(outputs: Outputs) -> None:
    for name in {"boxes", "candidate_boxes"} & set(outputs):
        outputs[name] = outputs[name] + 0.2


def lower(outputs: Outputs) -> None:
    for name in {"scores", "candidate_scores"} & set(outputs):
        outputs[name] = outputs[name] * 0.99


def relabelled(outputs: Outputs) -> None:
    for name in {"labels", "candidate_labels"} & set(outputs):
        outputs[name] = outputs[name] + 1


def fewer(outputs: Outputs) -> None:
    if "scores" in outputs:
        outputs["num_detections"] = outputs["num_detections"] - 3
    else:
        scores = outputs["candidate_scores"]
        scores[scores < np.median(scores[scores > 0])] = -1


def not_numbers(outputs: Outputs) -> None:
    for name in {"boxes", "candidate_boxes"} & set(outputs):
        outputs[name][...] = np.nan


def scores_not_numbers(outputs: Outputs) -> None:
    for name in {"scores", "candidate_scores"} & set(outputs):
        outputs[name][...] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shifted, r"boxes are off by up to (\S+) pixels, not 0\.05 in image 0"),
        (lower, r"scores are off by up to 0\.00\d+, not 0\.001"),
        (relabelled, "have no partner of that class"),
        (fewer, r"there are \d+ detections, not \d+"),
        (not_numbers, "have no partner"),
        (scores_not_numbers, "scores are off by up to nan|there are 0 detections"),
    ],
)
def test_a_broken_runtime_is_told_what_it_has_wrong(
    change: Callable[[Outputs], object], words: str, file: Path
) -> None:
    with pytest.raises(ParityError, match=words) as caught:
        self_test.check(Changed(file, change), stored(file))
    assert "\n" not in str(caught.value)
    if change is shifted:  # which adds to what rounding does: 0.2 here, 0.201 measured with AMX
        found = re.search(words, str(caught.value))
        assert found is not None and float(found[1]) == pytest.approx(0.2, abs=0.02)


def test_broken_masks_and_maps_are_told_from_each_other(file: Path) -> None:
    names = ["masks"] if "nano" in file.name else ["params_map", "mask_features"]
    for name in names:

        def change(outputs: Outputs, name: str = name) -> None:
            outputs[name] = outputs[name] * 0.9

        word = "mean mask probabilities are off by" if name == "masks" else f"deviation of {name}"
        with pytest.raises(ParityError, match=word):
            self_test.check(Changed(file, change), stored(file))


def test_one_tie_that_goes_the_other_way_is_no_defect(file: Path) -> None:
    def change(outputs: Outputs) -> None:
        boxes = outputs.get("boxes", outputs.get("candidate_boxes"))
        assert boxes is not None
        boxes[0, 1] += 40

    self_test.check(Changed(file, change), stored(file))


def test_where_the_file_differs_at_ties_only_the_best_score_counts(
    nano_checkpoint: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    path = Path(copy(nano_onnx, tmp_path / "model.onnx"))

    class Tied(Changed):
        def __init__(self, path: Path) -> None:
            super().__init__(path, lambda outputs: outputs["boxes"].__iadd__(9))

    self_test.store(path, TorchIntermediates(checkpoint.load(nano_checkpoint)), Tied(path))
    expected = stored(path)
    assert expected.tied
    self_test.check(OrtSession(path, threads=1), expected)
    self_test.check(Tied(path), expected)
    with pytest.raises(ParityError, match=r"the best score is 0\.\d+, not 0\.\d+ in image 0"):
        self_test.check(Changed(path, lower), expected)


def test_changed_golden_outputs_are_refused_and_missing_ones_are_none(file: Path) -> None:
    props = props_from_onnx(file.read_bytes(), file)
    assert self_test.self_test_from_props({"condinst": "x"}, file) is None
    changed = {**props, self_test.KEY: props[self_test.KEY].replace('"picture": 0', '"picture": 1')}
    assert changed != props
    with pytest.raises(ModelFileError, match="changed after export"):
        self_test.self_test_from_props(changed, file)


def test_an_input_that_comes_out_differently_is_said(file: Path) -> None:
    with pytest.raises(ParityError, match="comes out differently"):
        self_test.check(OrtSession(file, threads=1), replace(stored(file), picture=3))
