"""Generated parts of README.md and docs/ are up to date, and every marker has a part."""

import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from benchmarks.report import operations
from condinst_infer.cli.main import VERBS, main, parse
from docs import architecture_picture, command_line, generate
from tests.project.test_package import ROWS
from tests.support import architecture

COMMAND = "run: python -m docs.generate"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return generate.parts()


def page_name(path: object) -> str:
    return str(path).removeprefix(f"{generate.ROOT}/")


@pytest.mark.parametrize("path", list(generate.pages()), ids=page_name)
def test_a_page_is_up_to_date(path: Path, made: dict[str, str]) -> None:
    text = path.read_text()
    assert generate.with_parts(text, made) == text, f"{page_name(path)} is stale; {COMMAND}"


def test_every_part_is_in_a_page(made: dict[str, str]) -> None:
    used = {name for path in generate.pages() for name in generate.part_names(path.read_text())}
    assert used == set(made)


def test_the_picture_of_the_architecture_is_up_to_date() -> None:
    picture = architecture_picture.PATH.read_text()
    assert picture == architecture_picture.svg(), COMMAND
    for name in (name for row in ROWS for name in row):
        assert f">{architecture.shown(name)}</text>" in picture


def test_parts_are_replaced_between_their_markers() -> None:
    page = "a\n<!-- one -->\nold\n<!-- /one -->\n\n<!-- two -->\n<!-- /two -->\nb\n"
    new = "a\n<!-- one -->\nx\ny\n<!-- /one -->\n\n<!-- two -->\n\\1\n<!-- /two -->\nb\n"
    assert generate.with_parts(page, {"one": "x\ny", "two": "\\1", "unused": ""}) == new
    assert generate.with_parts("none <!-- here -->", {}) == "none <!-- here -->"


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("<!-- many -->\n<!-- /many -->", "there is no part many; there are one, two"),
        ("<!-- one -->\ntext\n", "<!-- one --> has no partner"),
        ("text\n<!-- /one -->\n", "<!-- /one --> has no partner"),
        ("<!-- one -->\n<!-- /two -->", "<!-- one --> has no partner"),
        ("<!-- one -->\n<!-- /one -->\n<!-- /one -->", "<!-- /one --> has no partner"),
    ],
)
def test_wrong_markers_are_rejected(page: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        generate.with_parts(page, {"two": "", "one": ""})


def real_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(command_line.WIDTH + 2))  # argparse leaves two free
    output = StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit):
        main([verb, "--help"])
    return output.getvalue()


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_what_its_help_says(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = real_help(verb, monkeypatch)
    assert command_line.parser_of(verb).format_help() == shown
    section = command_line.verb_section(verb)
    assert shown.partition("\n\n")[0] in section
    for action in command_line.parser_of(verb)._actions:
        assert action.dest == "help" or f"| `{', '.join(action.option_strings)}" in section


def examples() -> Iterator[str]:
    for verb in VERBS:
        example = (command_line.parser_of(verb).epilog or "").replace("\\\n", " ")
        lines = (line.strip() for line in example.splitlines() if "  condinst " in line)
        yield from (line for line in lines if not line.endswith("..."))


@pytest.mark.parametrize("line", list(examples()))
def test_the_examples_are_commands(line: str) -> None:
    run, options = parse(shlex.split(line, comments=True)[1:])
    assert callable(run) and options is not None


def test_settings_have_their_defaults_and_comments(made: dict[str, str]) -> None:
    model, training = made["model_settings"], made["training_settings"]
    assert "| `nms_iou` | `0.6` | same-class boxes above this overlap are dropped |" in model
    assert "| `steps` | `(60000, 80000)` | iterations after which the rate" in training
    assert "**InputConfig**" in model and "**CondInstConfig**" not in model
    for name in ("mask_stride", "stuff_area_limit"):
        assert f"| `{name}` |" in model
    for name in ("accumulate", "crop", "max_mask_samples"):
        assert f"| `{name}` |" in training


def test_measured_results_say_what_stands_beside_ours(made: dict[str, str]) -> None:
    table, _, machine = made["measured"].partition("\n\n")
    heads, _, *rows = table.splitlines()
    assert heads == "| what | ours, ms | beside | its ms | ratio |" and len(rows) == 8
    assert all(row.count("|") == 6 for row in rows)
    assert "cores; onnxruntime " in machine and "2 threads" in machine
    operations_measured = operations.operation_table().splitlines()
    paste = next(row for row in operations_measured if "100 masks 200x272" in row).split(" | ")
    assert any("100 masks 200x272" in row and f"| {paste[4]} |" in row for row in rows)
