"""The containers, as far as this goes without building one: lint, what they copy, health."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from condinst_infer.pipeline import Pipeline
from tests.support.command_line import Run, assert_refused
from tests.support.fake_session import FakeSession
from tests.support.http_server import serving

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "engines" / "docker").glob("*.Dockerfile"))


def instruction(dockerfile: Path, name: str) -> str:
    """The last instruction of that name, in one line."""
    text = dockerfile.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, re.M)[-1]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_nobody_is_root_and_the_commands_exist(dockerfile: Path, condinst: Run) -> None:
    user, group = map(int, instruction(dockerfile, "USER").split(":"))
    assert user > 0 and group > 0
    assert json.loads(instruction(dockerfile, "ENTRYPOINT")) == ["condinst"]
    verb, model, *words = json.loads(instruction(dockerfile, "CMD"))
    refusal = condinst(verb, f"/no{model}", *words)  # all words are understood
    assert_refused(refusal, f"/no{model}")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_health_follows_the_server(dockerfile: Path) -> None:
    command = instruction(dockerfile, "HEALTHCHECK").partition("CMD ")[2]
    assert ":8000/" in command
    with serving(Pipeline(FakeSession())) as running:
        words = json.loads(command.replace("http://127.0.0.1:8000", running.url))
        words[0] = sys.executable
        assert subprocess.run(words, capture_output=True).returncode == 0
    assert subprocess.run(words, capture_output=True).returncode == 1


def test_the_pins_can_be_constraints() -> None:
    pins = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert not [pin for pin in pins if "[" in pin]  # pip takes no extras there


def test_what_is_copied_makes_the_package(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    for name in (line[1:] for line in lines if line.startswith("!")):
        (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "some" / name)
        else:
            shutil.copy(ROOT / name, tmp_path / "some" / name)

    def packaged(source: Path) -> set[Path]:
        lib = tmp_path / f"{source.name}-lib"
        words = ("-q", "build", "-b", str(lib / "build"), "--build-lib", str(lib / "lib"))
        subprocess.run(
            [sys.executable, "setup.py", *words], cwd=source, check=True, capture_output=True
        )
        return {path.relative_to(lib) for path in (lib / "lib").rglob("*") if path.is_file()}

    assert packaged(tmp_path / "some") == packaged(ROOT)
