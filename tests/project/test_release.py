""".ci/release stops before the build when a cheap check fails, with one sentence.

Each test has a small repository with the script; tests/project/test_distribution.py runs a build.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
URL = "https://git.example/owner/condinst-infer"
DATED = "# Changelog\n\n## 1.2.3 (2030-01-31)\n\n- Something.\n"
README = "# condinst-infer\n\nA [page](docs/a.md).\n"


def git(folder: Path, *words: str) -> None:
    person = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", folder, *person, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What the script reads before it builds. A build fails, since there is no pyproject.toml."""
    for name in (".ci/release", ".ci/source_files.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "condinst_infer").mkdir()
    (tmp_path / "condinst_infer/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(DATED)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    return tmp_path


def reason(repository: Path, *options: str | Path, url: str | None = URL) -> str:
    """The one line that the script ends with."""
    words = [sys.executable, repository / ".ci/release", "--no-isolation", *options]
    words += ["-o", repository / "dist"] if "-o" not in options else []
    words += ["--url", url] if url else []
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    if "the build failed" not in done.stderr:
        assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert not (repository / "dist").exists()
    return done.stderr


def test_it_needs_an_address_and_an_empty_folder(repository: Path) -> None:
    assert "give the repository's address" in reason(repository, url=None)
    assert "is no address" in reason(repository, url="git.example/owner/condinst-infer")
    (repository / "old").mkdir()
    (repository / "old/a.whl").touch()
    assert "is not empty" in reason(repository, "-o", repository / "old")
    assert [path.name for path in (repository / "old").iterdir()] == ["a.whl"]


def test_all_cheap_checks_pass_before_the_build(repository: Path) -> None:
    assert "the build failed" in reason(repository)


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("## 1.2.3 (unreleased)", "says that 1.2.3 is 'unreleased'"),
        ("## 1.2.3 (2030-02-31)", "says that 1.2.3 is '2030-02-31'"),
        ("## 1.2.2 (2030-01-31)", "has no section '## 1.2.3 (date)'"),
        ("## 1.2.30 (2030-01-31)", "has no section '## 1.2.3 (date)'"),
    ],
)
def test_the_changelog_must_date_the_version(repository: Path, title: str, words: str) -> None:
    (repository / "CHANGELOG.md").write_text(f"# Changelog\n\n{title}\n\n- Something.\n")
    found = reason(repository)
    assert words in found and "write '## 1.2.3 (2" in found
    assert "the build failed" in reason(repository, "--unreleased")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('<img src="docs/a.png">', "the link to docs/a.png"),
        ("A [page][1].\n\n[1]: docs/b.md", "the link to docs/b.md"),
    ],
)
def test_the_readme_must_be_shown_whole_on_pypi(repository: Path, line: str, words: str) -> None:
    (repository / "README.md").write_text(f"{README}\n{line}\n")
    assert words in reason(repository)


def test_an_empty_readme_is_not_released(repository: Path) -> None:
    (repository / "README.md").write_text("")
    assert "readme_renderer gives nothing" in reason(repository)


def test_what_is_built_is_committed_and_has_the_name_of_its_tag(repository: Path) -> None:
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "a")
    assert "the build failed" in reason(repository)
    git(repository, "tag", "v1.2.2")
    assert "is tagged v1.2.2, and its version is 1.2.3" in reason(repository)
    git(repository, "tag", "-d", "v1.2.2")
    git(repository, "tag", "v1.2.3")
    assert "the build failed" in reason(repository)
    assert "the tag v1.2.3 exists" in reason(repository, "--tag")
    (repository / "README.md").write_text(f"{README}\nMore.\n")
    assert "README.md is not as it was committed" in reason(repository)
    git(repository, "commit", "-qam", "b")
    assert "the tag v1.2.3 is on another commit" in reason(repository)


def test_a_tag_needs_git_and_a_released_version(repository: Path) -> None:
    assert "needs the git repository" in reason(repository, "--tag")
    assert "leave out --unreleased" in reason(repository, "--tag", "--unreleased")
