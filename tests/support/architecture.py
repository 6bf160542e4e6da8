"""Writes the table of rooms into docs/architecture.md.

python -m tests.support.architecture
"""

import ast
import re
from pathlib import Path

from tests.project.test_package import ROOT, ROWS

PAGE = ROOT.parent / "docs" / "architecture.md"
_TABLE = re.compile(r"(<!-- rooms -->\n).*(<!-- /rooms -->)", re.DOTALL)


def table() -> str:
    """The rooms from the lowest row to the highest, each with the first line of its docstring."""
    lines = ["| row | room | what is in it |", "| --- | --- | --- |"]
    for number, row in enumerate(ROWS, 1):
        for name in row:
            path = ROOT / name / "__init__.py"
            path = path if path.exists() else ROOT / f"{name}.py"
            text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            shown = f"{name}/" if path.name == "__init__.py" and name != "__init__" else path.name
            lines.append(f"| {number} | `{shown}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """`page` with the table between its two markers."""
    return _TABLE.sub(lambda match: match[1] + table() + match[2], page)


def questions(page: str) -> list[tuple[str, Path, str]]:
    """(question, file, name in the file) of each row under "Where is ...?"."""
    rows = re.findall(r"^\| (.+?) \| `(\S+)`(?:, `(\w+)`)? \|$", page, re.MULTILINE)
    return [(question, ROOT.parent / path, name) for question, path, name in rows]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
