"""The command line itself: its one sentence for each mistake, its help, its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

import condinst_infer as ci
from condinst_infer.cli.main import VERBS
from condinst_infer.cli.sources import image_files
from condinst_infer.errors import InputError
from condinst_infer.system.outputs import atomic_file, new_folder
from tests.support.command_line import Run, assert_refused


def test_every_mistake_is_one_sentence(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "out", photos / "a.png"
    empty = tmp_path / "empty"
    empty.mkdir()
    predict = ("predict", bright_model, image, "-o", out)
    for command, word in (
        (("predict", tmp_path / "no.onnx", image, "-o", out), "no.onnx does not exist"),
        (("predict", image, image, "-o", out), "must end in .onnx"),
        (("predict", bright_model, empty, "-o", out), "there are no images"),
        (("predict", bright_model, empty / "*.jpg", "-o", out), "there are no files that match"),
        (("predict", bright_model, image, "-o", image), "a.png"),
        (("predict", bright_model, image), "-o/--output"),
        ((*predict, "--score-threshold", "0.01"), "condinst export"),
        ((*predict, "--score-threshold", "nan"), "from 0 to 1"),
        ((*predict, "--score-threshold", "high"), "'high'"),
        ((*predict, "--max-detections", "0"), "max_detections"),
        ((*predict, "--classes", "dgo"), "dog"),
        ((*predict, "--threads", "0"), "whole number >= 1"),
        ((*predict, "--batch", "x"), "whole number >= 1"),
        ((*predict, "--workers", "0"), "whole number >= 1"),
        ((*predict, "--thread", "1"), "--thread"),
        (("export", "a.safetensors", "-o", "a.onnx", "--size", "512"), "HxW"),
        (("export", "a.safetensors", "-o", "a.pt"), "must end in .onnx"),
        (("export", "a.onnx", "-o", "b.onnx"), "is exported already"),
        (("import", "a.pth", "-o", "a.onnx"), "must end in .safetensors"),
        (("info", image), "must end in .onnx, .engine or .safetensors"),
        (("info", tmp_path / "no.safetensors"), "does not exist"),
        (("train",), "train"),
        ((), "VERB"),
    ):
        assert_refused(condinst(*command), word)
    assert not out.exists()


def test_replacing_leaves_nothing_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with atomic_file(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(InputError, match="can't be written"), atomic_file(path / "b.txt"):
        pass


def test_a_file_with_pattern_characters_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a[1].png"
    path.write_bytes(b"x")
    assert [file.path for file in image_files([str(path)], tmp_path)] == [path]


def test_every_verb_explains_itself_with_an_example(condinst: Run) -> None:
    for verb in VERBS:
        status, text, _ = condinst(verb, "--help")
        assert status == 0 and f"example:\n  condinst {verb}" in text
    assert condinst("--version")[1] == f"condinst {ci.__version__}\n"


def test_an_interrupt_ends_quietly(condinst: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("condinst_infer.cli.presets.preset_rows", interrupted)
    assert condinst("presets") == (130, "", "condinst: interrupted.\n")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "condinst_infer", "info", str(tmp_path / "no.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"condinst: {tmp_path / 'no.onnx'} does not exist.\n"


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as part:
        (part / "half").touch()
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with pytest.raises(InputError, match="can't be written"), new_folder(path) as part:
        path.mkdir()
        (path / "another's").touch()
    assert [p.name for p in path.parent.rglob("*")] == ["b", "another's"]
    (path / "another's").unlink()
    with new_folder(path) as part:  # an empty folder is as good as none
        (part / "whole").touch()
    assert [p.name for p in path.iterdir()] == ["whole"]
