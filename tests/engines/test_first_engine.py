"""The page "first engine": its commands in order, and that they print what it says."""

import re
import shutil
from pathlib import Path

import pytest

from condinst_infer.contract.model_file import model_path
from engines.compile_ptx import README
from engines.emulator import Emulator
from tests.support.code_blocks import parse_page
from tests.support.command_line import Run
from tests.support.fake_tensorrt.device import install

QUICKLY = {
    "bench": ["--size", "64x96", "--repeats", "1", "--warmup", "1"]
}  # more words of a command


def section() -> str:
    _, _, rest = README.read_text().partition("## First engine\n")
    return rest.partition("\n## ")[0]


def commands() -> list[str]:
    (block,) = [b for b in parse_page(section(), "README.md").blocks if b.language == "sh"]
    return block.code.splitlines()


def rows() -> list[tuple[str, str]]:
    """What each command is called in the table, and the cell of what it prints."""
    found = re.findall(r"^\| `(.+?)` \| (.+) \|$", section(), re.MULTILINE)
    return [(name, cell) for name, cell in found]


def printed(cell: str) -> list[tuple[bool, str]]:
    """Patterns of the code in a cell, and whether each must be printed or must not."""
    spans = re.findall(r"(\bno |\bwithout )?`(.+?)`", cell)
    return [
        (not negated, r"\s+".join(re.escape(span).replace(r"\.\.\.", ".+").split(r"\ ")))
        for negated, span in spans
    ]


def test_the_table_has_the_ten_commands_in_order() -> None:
    assert len(commands()) == 10
    for (name, cell), command in zip(rows(), commands(), strict=True):
        assert name in command and printed(cell), command


@pytest.mark.slow
def test_the_commands_print_what_the_page_says(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, condinst: Run
) -> None:
    """From `build` on, with TensorRT's stand-in; the export to fp16 would take a minute."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copy(model_path("nuclei"), "nuclei.onnx")
    picture = Path("condinst_infer/data/nuclei.jpg")
    picture.parent.mkdir(parents=True)
    shutil.copy(model_path("nuclei").with_suffix(".jpg"), picture)
    ran = []
    for (name, cell), command in zip(rows(), commands(), strict=True):
        program, *words = command.split()
        if program == "condinst" and words[0] not in ("doctor", "export"):
            status, text, error = condinst(*words, *QUICKLY.get(name, ()))
            assert (status, error) == (0, ""), command
            for wanted, pattern in printed(cell):
                pattern = pattern.replace("fp16", "fp32")
                assert (re.search(pattern, text) is not None) == wanted, (pattern, text)
            ran.append(name)
    assert ran == ["build", "info", "predict", "compare", "bench"]
    assert "1 images, 156 instances" in condinst("predict", "nuclei.onnx", picture, "-o", "out")[1]
