"""Tables and help texts of the command line, from its parsers and the configuration's sources."""

import argparse
import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown
from condinst_infer.cli.main import VERBS
from condinst_infer.cli.presets import paper_rows, preset_rows, published_rows
from condinst_infer.config import model
from condinst_infer.train import augment, losses, settings

ROOT = Path(__file__).parents[1]
WIDTH = 78  # characters of a usage block
NOT_SETTABLE = ("CondInstConfig",)  # its fields are the sections


def parts() -> dict[str, str]:
    """The parts by name, in Markdown."""
    return {
        "help": help_text(),
        "verbs": "\n\n".join(map(verb_section, VERBS)),
        "presets": _rows([_without(row, "P") for row in preset_rows()]),
        "published": _rows(published_rows()),
        "paper_tables": _rows([_without(row, "here") for row in paper_rows()]),
        "model_settings": field_tables(model),
        "training_settings": field_tables(settings, augment, losses),
    }


def help_text() -> str:
    """The output of `condinst --help` in a block."""
    command = [sys.executable, "-m", "condinst_infer", "--help"]
    environment = {"COLUMNS": "100", "PATH": "", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return _block(run.stdout)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb, as `condinst VERB --help` has it."""
    module, summary = VERBS[verb]
    found = importlib.import_module(module).VERB
    parser = argparse.ArgumentParser(
        prog=f"condinst {verb}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {found.example}",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=WIDTH),
        allow_abbrev=False,
    )
    found.add_options(parser)
    return parser


def verb_section(verb: str) -> str:
    """Title, description, usage, tables of arguments and example of one verb."""
    parser = parser_of(verb)
    lines = [f"## condinst {verb}", f"{parser.description}", _block(parser.format_usage())]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            described = f": {group.description}" if group.description else ""
            lines.append(f"**{group.title}**{described}.")
        heads = ["argument", "meaning"]
        lines.append(markdown(heads, [_argument(parser, action) for action in actions]))
    example = (parser.epilog or "").removeprefix("example:\n")
    lines += ["Example:", _block(inspect.cleandoc(example))]
    return "\n\n".join(lines)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """The row of one argument: names with metavar, and help text."""
    formatter = parser._get_formatter()
    default = formatter._get_default_metavar_for_optional(action)
    values = formatter._format_args(action, default) if action.nargs != 0 else ""
    if not action.option_strings:
        values = formatter._format_action_invocation(action)
    words = [*(", ".join(action.option_strings),), values]
    shown = " ".join(word for word in words if word)
    required = " (required)" if action.required and action.option_strings else ""
    return [f"`{_cell(shown)}`", _prose(formatter._expand_help(action)) + required]


def field_tables(*modules: Any) -> str:
    """A table of the fields of each dataclass in `modules`: default, and the comment beside it."""
    tables = []
    for module in modules:
        source = Path(module.__file__).read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name not in NOT_SETTABLE:
                if rows := _fields(node, source):
                    summary = (ast.get_docstring(node) or "").partition("\n")[0]
                    table = markdown(["field", "default", "meaning"], rows)
                    tables.append(f"**{node.name}**: {summary}\n\n{table}")
    return "\n\n".join(tables)


def _fields(node: ast.ClassDef, source: str) -> list[list[str]]:
    """Name, default and comment of each field that holds a value."""
    rows, lines = [], source.splitlines()
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or item.value is None:
            continue
        default = ast.unparse(item.value)
        if not isinstance(item.target, ast.Name) or default.startswith("field("):
            continue
        rest = lines[(item.end_lineno or 0) - 1].encode()[item.end_col_offset or 0 :].decode()
        comment = rest.strip().removeprefix("#").strip()
        rows.append([f"`{item.target.id}`", f"`{_cell(default)}`", _prose(comment)])
    return rows


def _rows(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    """Dictionaries as a table under their keys."""
    heads = list(rows[0])
    return markdown(heads, [[_prose(str(row[head])) for head in heads] for row in rows])


def _without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(text: str) -> str:
    """`text` in a cell, where no character of it is Markdown."""
    return re.sub(r"([\\|*<>`\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
