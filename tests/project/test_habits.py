"""What people and programs around the code rely on: checks of sources, CI, citation, templates."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import condinst_infer

ROOT = Path(__file__).parents[2]
LINT = ROOT / ".ci/lint"
MISSPELT = "Rec" + "ieve"  # in two parts, since this file is checked too
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def load(name: str) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder without git that holds the script, its settings and one file of each kind."""
    for name in (
        ".ci/lint",
        ".ci/source_files.py",
        ".clang-format",
        ".gitignore",
        "pyproject.toml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "a.py").write_text("value = 1\n")
    (tmp_path / "a.c").write_text("int value(void) { return 1; }\n")
    (tmp_path / "a.md").write_text("A page.\n")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/ignored.md").write_text(f"{MISSPELT} \n")
    return tmp_path


def lint(project: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, project / ".ci/lint", *words], capture_output=True, text=True, cwd=project
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("check", "name", "content", "words"),
    [
        ("ruff", "a.py", "import os\n", "F401"),
        ("ruff-format", "a.py", "value=1\n", "+value = 1"),
        ("clang-format", "a.c", "int  value(void) {return 1;}\n", "a.c:1"),
        ("spelling", "a.md", f"{MISSPELT} it.\n", f"{MISSPELT} ==> "),
        ("files", "a.md", "A page. \n", "a.md:1: white space at the end"),
        ("files", "a.md", "A page.", "a.md:1: the file must end with one newline"),
        ("files", "a.md", "A page.\n\n", "a.md:3: the file must end with one newline"),
        ("files", "a.md", "One\nA page.\r\n", "a.md:2: the line ends with CR LF"),
        ("files", "a.md", "<<<<<<< ours\n", "a.md:1: a conflict"),
        ("files", "a.json", '{"a": 1,}', "a.json:1: not JSON"),
        ("files", "a.toml", "a =\n", "a.toml:1: not TOML"),
        ("files", "a.md", b"\xff\n", "a.md:1: not UTF-8"),
        ("files", "a.bin", b"\0" * 6_000_001, "a.bin: 6000001 bytes"),
    ],
)
def test_a_check_sees_what_it_is_for(
    project: Path, check: str, name: str, content: str | bytes, words: str
) -> None:
    status, text = lint(project, check)
    assert status == 0 and f"{check}: passed" in text
    (project / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    status, text = lint(project, check)
    assert status == 1 and words in text and f"{check}: FAILED" in text, text


def test_fix_repairs_layout(project: Path) -> None:
    (project / "a.py").write_text("value=1\n")
    (project / "a.c").write_text("int  value(void) {return 1;}\n")
    layout = ("ruff-format", "clang-format")
    assert lint(project, *layout)[0] == 1
    assert lint(project, "--fix", *layout)[0] == 0 and lint(project, *layout)[0] == 0
    assert (project / "a.c").read_text() == "int value(void) { return 1; }\n"


def test_an_unknown_check_is_an_error(project: Path) -> None:
    status, text = lint(project, "style")
    assert status == 2 and "no check is called 'style'; the checks are: ruff, " in text


def test_this_repository_is_clean() -> None:
    status, text = lint(ROOT, "ruff", "ruff-format", "clang-format", "spelling", "files")
    assert status == 0, text


def test_a_commit_and_ci_run_every_check() -> None:
    names = lint(ROOT, "style")[1].partition("the checks are: ")[2].strip().split(", ")
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # downloads nothing
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == [f".ci/lint {name}" for name in names]
    assert {hook["language"] for hook in hooks} == {"system"}
    script = (ROOT / ".ci/run").read_text()
    assert re.search(r"\.ci/lint( #|$)", script, re.MULTILINE)  # without names: all of them
    assert "mkdocs build --strict" in script and ".ci/quick_coverage.py" in script


def test_the_workflow_calls_scripts_of_this_repository() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert [word for command in commands for word in command.split()[:1]] == [
        ".ci/run", "pip", ".ci/release"
    ]  # fmt: skip
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+", action), action
    for command in commands:
        name = command.split()[0]
        assert name == "pip" or (ROOT / name).stat().st_mode & 0o100, name


def test_issue_forms_have_what_the_code_host_asks_for() -> None:
    for name in ("bug", "feature"):
        form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert {"name", "description", "body"} <= set(form)
        inputs = [item for item in form["body"] if item["type"] != "markdown"]
        assert len({item["id"] for item in inputs}) == len(inputs)
        assert all(item["attributes"]["label"] for item in inputs)
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    assert "condinst doctor --json" in text and "condinst info MODEL" in text


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # required by CFF 1.2.0
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert str(citation["version"]) == condinst_infer.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["authors"] == project["authors"]
    assert citation["license"] == project["license"]
    papers = {
        reference["identifiers"][0]["value"]: [a["family-names"] for a in reference["authors"]]
        for reference in citation["references"]
    }
    assert papers == {
        "arXiv:2003.05664": ["Tian", "Shen", "Chen"],
        "arXiv:2102.03026": ["Tian", "Zhang", "Chen", "Shen"],
    }
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)  # required of a reference


def test_the_changelog_begins_with_this_version() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"[\d.]+ \((unreleased|\d{4}-\d\d-\d\d)\)", titles[0])
    assert titles[0].split()[0] == condinst_infer.__version__
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_files_named_on_a_page_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    # NAME and VERB stand for what is new; site/ and dist/ are written; docs/ by docs/generate.py
    new = re.compile(r"NAME|VERB|^(site|dist)/|\*")
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text):
        if not new.search(path):
            places = (ROOT, ROOT / "condinst_infer")
            assert any((place / path).exists() for place in places), path


def test_names_in_the_recipes_are_in_the_code() -> None:
    sources = [ROOT / ".ci", ROOT / "condinst_infer", ROOT / "tests"]
    code = "".join(
        path.read_text()
        for source in sources
        for path in source.rglob("*")
        if path.suffix == ".py" or path.parent.name == ".ci" and path.is_file()
        if "__pycache__" not in path.parts
    )
    recipes = CONTRIBUTING.partition("## Add a kernel")[2].partition("## Release")[0]
    names = set(re.findall(r"`([A-Za-z_]\w*)`", recipes)) - {"VERB", "add"}
    assert {"open_model", "VERBS", "_PRESETS", "settings_for", "CHECKS"} <= names
    for name in names:
        assert re.search(rf"\b{name}\b", code), name


def test_what_is_at_a_path_is_asked_in_one_place() -> None:
    """Bare calls of pathlib end in a traceback for a long name, a closed folder or a loop."""
    bare = re.compile(r"(?<!\bpaths)\.(is_file|is_dir|exists|glob|rglob)\(")
    for path in (ROOT / "condinst_infer").rglob("*.py"):
        if path.parent.name == "system":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = bare.search(line)
            assert found is None or "def " in line or path.name in _OWN_FILES, f"{path}:{number}"


_OWN_FILES = ("resume.py",)  # globs in a folder of this package's own files


def test_pinned_tools_are_those_that_the_checks_call() -> None:
    pins = (ROOT / "requirements-dev.txt").read_text()
    for name in ("ruff", "clang-format", "codespell", "pyright", "pre-commit", "readme-renderer"):
        assert re.search(rf"^{name}==[\d.]+", pins, re.MULTILINE), name


@pytest.mark.slow
def test_pre_commit_runs_the_hooks(tmp_path: Path) -> None:
    """In a clone with everything committed, offline, without the slow types."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    environment = {"HOME": str(tmp_path), "SKIP": "types", "PRE_COMMIT_HOME": str(tmp_path / "own")}
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    done = subprocess.run(
        command, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("Passed") == 5, done.stdout + done.stderr
