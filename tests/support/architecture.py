"""The table of rooms in docs/architecture.md, and the questions there."""

import ast
import re
from pathlib import Path

from benchmarks.report.tables import markdown
from tests.project.test_package import ROOT, ROWS

PAGE = ROOT.parent / "docs" / "architecture.md"


def table() -> str:
    """The rooms from the lowest row to the highest, each with the first line of its docstring."""
    rows = []
    for number, row in enumerate(ROWS, 1):
        for name in row:
            path = room_path(name)
            text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            rows.append([str(number), f"`{shown(name)}`", text.replace("|", "\\|")])
    return markdown(["row", "room", "what is in it"], rows)


def room_path(name: str) -> Path:
    """The file that says what a room is."""
    path = ROOT / name / "__init__.py"
    return path if path.exists() else ROOT / f"{name}.py"


def shown(name: str) -> str:
    """A room as people write it: "config/" or "errors.py"."""
    return f"{name}.py" if room_path(name).parent == ROOT else f"{name}/"


def questions(page: str) -> list[tuple[str, Path, str]]:
    """(question, file, name in the file) of each row under "Where is ...?"."""
    rows = re.findall(r"^\| (.+?) \| `(\S+)`(?:, `(\w+)`)? \|$", page, re.MULTILINE)
    return [(question, ROOT.parent / path, name) for question, path, name in rows]
