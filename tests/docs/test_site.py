"""The site builds without a warning, loads nothing from another host, and shows every page."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LOADED = {  # attributes of elements that a browser loads without a click
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "object": ("data",),
    "embed": ("src",),
}
FOREIGN = re.compile(r"^\s*(https?:)?//")


class LoadedAddresses(HTMLParser):
    """Collects the addresses that a page loads, and the scripts and styles in it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in LOADED.get(tag, ()) if name in values]


def settings() -> dict[str, Any]:
    """mkdocs.yml, with `!relative` as its word."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!relative", lambda loader, node: node.value)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506 a SafeLoader


def nav_pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        (value,) = entry.values()
        if isinstance(value, str):
            yield value
        else:
            yield from nav_pages(value)


def test_every_page_is_in_the_nav_once() -> None:
    assert sorted(nav_pages(settings()["nav"])) == PAGES


def test_no_address_is_invented() -> None:
    assert not {"site_url", "repo_url", "edit_uri"} & set(settings())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_a_title_and_says_what_the_reader_has_at_its_end(name: str) -> None:
    lines = (DOCS / name).read_text().splitlines()
    assert lines[0].startswith("# ") and lines[1] == ""
    titles = [line for line in without_blocks(lines) if line.startswith("# ")]
    assert titles == lines[:1]
    if name.startswith(("tutorials/", "how-to/", "reference/", "architecture")):
        assert lines[2].startswith("At the end of this page you ")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_well_on_a_code_host(name: str) -> None:
    for line in without_blocks((DOCS / name).read_text().splitlines()):
        assert not line.startswith(("!!!", "???", "=== ")), line
        assert not re.match(r"<(?!!--)", line), line


def without_blocks(lines: list[str]) -> Iterator[str]:
    """The lines of a page that are not in a fence."""
    inside = False
    for line in lines:
        if line.lstrip().startswith(("```", "~~~")):
            inside = not inside
        elif not inside:
            yield line


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_holds_the_pages_and_not_the_generator(site: Path) -> None:
    for name in PAGES:
        path = site / name.removesuffix(".md") / "index.html"
        path = site / "index.html" if name == "index.md" else path
        assert "<h1" in path.read_text(), name
    assert not list(site.rglob("*.py"))
    assert (site / "pictures" / "architecture.svg").is_file()


@pytest.mark.slow
def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = LoadedAddresses()
        page.feed(path.read_text())
        assert page.addresses
        assert not [address for address in page.addresses if FOREIGN.match(address)], path
        assert 'class="mermaid"' not in path.read_text()  # a script would be loaded for it
    for path in site.rglob("*.css"):
        text = path.read_text()
        found = re.findall(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)", text)
        assert not [word for pair in found for word in pair if FOREIGN.match(word)], path


@pytest.mark.slow
def test_the_site_shows_the_contract_and_the_docstrings(site: Path) -> None:
    import condinst_infer

    contract = (site / "reference" / "model-file" / "index.html").read_text()
    assert "candidate_locations" in contract and "--8&lt;--" not in contract
    python = (site / "reference" / "python" / "index.html").read_text()
    for name in condinst_infer.__all__:
        assert name == "__version__" or f'id="condinst_infer.{name}"' in python, name


@pytest.mark.slow
def test_the_search_finds_pages(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text()
    assert "dynamic" in index and "score_threshold" in index
