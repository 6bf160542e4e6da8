"""`condinst export` of a file that is exported already: standard operators, lost metadata."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import condinst_infer as ci
from condinst_infer.errors import ModelFileError
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused


def without_metadata(source: Path, path: Path) -> Path:
    """A copy as a tool writes that drops metadata."""
    proto = onnx.load(source)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    return path


def test_an_exported_file_is_rewritten_and_runs(
    condinst: Run, tested_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "standard.onnx"
    status, text, _ = condinst("export", tested_onnx, "-o", path, "--standard-ops", "--json")
    assert status == 0 and json.loads(text)["check"]["ok"]
    status, text, _ = condinst("info", path)
    assert status == 0 and "standard_ops:       True" in text
    assert "standard_ops" not in condinst("info", tested_onnx)[1]
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    with ci.load(tested_onnx) as a, ci.load(path) as b, ci.load(path, runtime="openvino") as c:
        counts = [len(pipeline(image)) for pipeline in (a, b, c)]
    assert counts[0] > 5 and len(set(counts)) == 1


def test_what_a_rewritten_file_cannot_be(condinst: Run, tested_onnx: Path, tmp_path: Path) -> None:
    path, standard = tmp_path / "a.onnx", tmp_path / "standard.onnx"
    fixed = ("--standard-ops", "--size", "64x96", "--batch", "1")
    assert condinst("export", tested_onnx, "-o", standard, "--standard-ops")[0] == 0
    assert_refused(condinst("export", tested_onnx, "-o", path), "is exported already")
    assert_refused(condinst("export", standard, "-o", path, *fixed), "expanded already")
    for option in (("--max-detections", "3"), ("--precision", "fp16"), ("--graph", "detector")):
        assert_refused(
            condinst("export", tested_onnx, "-o", path, "--standard-ops", *option),
            f"{option[0]} is chosen when a checkpoint is exported",
        )
    static = write_bright_model(tmp_path / "static.onnx", size=(96, 160), batch=2)
    assert_refused(condinst("export", static, "-o", path, *fixed), "fixed size of 96x160")
    assert not path.exists()


def test_lost_metadata_is_given_back(condinst: Run, tested_onnx: Path, tmp_path: Path) -> None:
    slim, path = without_metadata(tested_onnx, tmp_path / "slim.onnx"), tmp_path / "fixed.onnx"
    with pytest.raises(ModelFileError, match=f"condinst export {slim} .* --metadata-from"):
        ci.load(slim)
    status, text, _ = condinst("export", slim, "-o", path, "--metadata-from", tested_onnx)
    assert status == 0 and "the self-test passed on" in text
    before, after = (
        {prop.key: prop.value for prop in onnx.load(file).metadata_props}
        for file in (tested_onnx, path)
    )
    assert before == after


def test_metadata_says_what_a_tool_made_of_the_file(
    condinst: Run, tested_onnx: Path, tmp_path: Path
) -> None:
    expanded, path = tmp_path / "expanded.onnx", tmp_path / "fixed.onnx"
    assert condinst("export", tested_onnx, "-o", expanded, "--standard-ops")[0] == 0
    slim = without_metadata(expanded, tmp_path / "slim.onnx")
    assert condinst("export", slim, "-o", path, "--metadata-from", tested_onnx)[0] == 0
    assert json.loads(condinst("info", path, "--json")[1])["standard_ops"] is True


def test_metadata_is_given_to_the_same_model_alone(
    condinst: Run, tested_onnx: Path, nano_onnx: Path, tmp_path: Path
) -> None:
    proto, path = onnx.load(tested_onnx), tmp_path / "fixed.onnx"
    tensor = next(t for t in proto.graph.initializer if "mask_branch.output.bias" in t.name)
    changed = onnx.numpy_helper.to_array(tensor) + np.float32(1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    del proto.metadata_props[:]
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    command = ("export", other, "-o", path, "--metadata-from")
    status, _, err = condinst(*command, tested_onnx)
    assert status == 1 and "the outputs are not those" in err
    assert_refused(condinst(*command, nano_onnx), "exported without a self-test")
    assert_refused(condinst(*command, other), "no metadata")
    assert_refused(condinst(*command, tested_onnx, "--size", "64x96"), "--size and --metadata-from")
    bright = without_metadata(write_bright_model(tmp_path / "b.onnx"), tmp_path / "bright.onnx")
    command = ("export", bright, "-o", path, "--metadata-from", tested_onnx)
    assert_refused(condinst(*command), "the contract needs")
    checkpoint = ("export", "a.safetensors", "-o", path, "--metadata-from", tested_onnx)
    assert_refused(condinst(*checkpoint), "--metadata-from is for an .onnx file")
    assert not path.exists()
