"""Write what is generated in README.md, export/ and docs/: tables, help, headers and pictures.

    python -m docs.generate

A part stands between `<!-- name -->` and `<!-- /name -->`, each on a line of its own. A page holds
the parts whose markers it has. A test says which page is stale.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.report import accuracy, examples, operations, plots, runtimes, summary, tables
from docs import architecture_picture, command_line
from tests.support import architecture

ROOT = Path(__file__).parents[1]
HEADERS = ROOT / "engines" / "capi"
_PART = re.compile(r"^<!-- (?P<name>[a-z_]+) -->\n.*?^<!-- /(?P=name) -->$", re.M | re.S)
_MARKER = re.compile(r"^<!-- /?[a-z_]+ -->$", re.M)


def parts() -> dict[str, str]:
    """Every generated part by name, in Markdown."""
    return {
        "measured": summary.measured(),
        **tables.parts(),
        **operations.parts(),
        **accuracy.parts(),
        **runtimes.parts(),
        **examples.parts(),
        **command_line.parts(),
        "rooms": architecture.table(),
        "c_header": f"```c\n{(HEADERS / 'condinst.h').read_text()}```",
        "cpp_header": f"```cpp\n{(HEADERS / 'condinst.hpp').read_text()}```",
    }


def pages() -> Iterator[Path]:
    """README.md, export/README.md and the pages of docs/."""
    yield ROOT / "README.md"
    yield ROOT / "export" / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def part_names(text: str) -> list[str]:
    """The names of the parts in a page."""
    return [match["name"] for match in _PART.finditer(text)]


def with_parts(text: str, made: Mapping[str, str]) -> str:
    """The page `text` with each of its parts replaced.

    Raises:
        ValueError: a marker without its partner, or of a part that is not in `made`.
    """
    if alone := _MARKER.findall(_PART.sub("", text)):
        raise ValueError(f"{alone[0]} has no partner")
    if unknown := set(part_names(text)) - set(made):
        raise ValueError(f"there is no part {min(unknown)}; there are {', '.join(sorted(made))}")
    return _PART.sub(
        lambda match: f"<!-- {match['name']} -->\n{made[match['name']]}\n<!-- /{match['name']} -->",
        text,
    )


def main() -> None:
    """Draw the pictures and rewrite the pages."""
    plots.write()
    architecture_picture.PATH.write_text(architecture_picture.svg())
    made = parts()
    for path in pages():
        path.write_text(with_parts(path.read_text(), made))


if __name__ == "__main__":
    main()
