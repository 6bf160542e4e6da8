"""Names of model files, and the model that ships."""

from pathlib import Path

import pytest

import condinst_infer as ci
from condinst_infer.cli.main import parse
from condinst_infer.contract.model_file import ModelFile, kind_of, model_path
from condinst_infer.errors import ModelFileError
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused


def test_the_model_that_ships_has_a_name(demo_folder: Path) -> None:
    assert model_path("nuclei") == demo_folder / "nuclei.onnx"
    assert model_path(Path("nuclei"), ModelFile.CHECKPOINT) == demo_folder / "nuclei.safetensors"
    for other in ("nuclei.onnx", "photos/nuclei", "Nuclei", "model.onnx"):
        assert model_path(other) == Path(other)


def test_a_path_of_that_name_that_exists_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path("nuclei").suffix == ".onnx"
    write_bright_model(tmp_path / "nuclei.onnx")  # another name
    assert model_path("nuclei").parent != tmp_path
    (tmp_path / "nuclei").touch()
    assert model_path("nuclei") == Path("nuclei")
    with pytest.raises(ModelFileError, match=r"nuclei exists here .*nuclei\.onnx"):
        ci.load("nuclei")


def test_a_wrong_name_is_told_the_right_one() -> None:
    with pytest.raises(ModelFileError, match="or be nuclei, the model that ships"):
        kind_of("nucleus")


def test_load_opens_the_model_that_ships(demo_folder: Path) -> None:
    with ci.load("nuclei") as pipeline:
        assert pipeline.config.class_names == ("nucleus",)
        assert str(demo_folder / "nuclei.onnx") in repr(pipeline)


@pytest.mark.parametrize(
    ("words", "suffix"),
    [
        (("predict", "nuclei", "a.jpg", "-o", "out"), "onnx"),
        (("eval", "nuclei", "--annotations", "a.json"), "onnx"),
        (("bench", "nuclei"), "onnx"),
        (("serve", "nuclei"), "onnx"),
        (("build", "nuclei", "-o", "a.engine"), "onnx"),
        (("info", "nuclei"), "onnx"),
        (("compare", "nuclei", "nuclei"), "onnx"),
        (("export", "nuclei", "-o", "a.onnx"), "safetensors"),
        (("export", "nuclei", "--triton", "models"), "safetensors"),
    ],
)
def test_every_verb_takes_the_name(words: tuple, suffix: str, demo_folder: Path) -> None:
    _, options = parse(words)
    names = {"info": ["file"], "compare": ["a", "b"]}.get(words[0], ["model"])
    assert [getattr(options, name) for name in names] == [demo_folder / f"nuclei.{suffix}"] * len(
        names
    )


def test_the_command_line_runs_the_model_that_ships(
    condinst: Run, demo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, text, _ = condinst("predict", "nuclei", demo_folder / "nuclei.jpg", "-o", out, "--json")
    assert status == 0 and '"instances": 156' in text
    assert condinst("info", "nuclei")[0] == 0
    assert_refused(condinst("info", "nucleus"), "or be nuclei")
