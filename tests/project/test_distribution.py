"""What is uploaded: the sdist, the wheel, its description, and its types for those who install it.

The package is the wheel in an environment of its own, which borrows the dependencies.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path

import pytest
from build.util import project_wheel_metadata

import condinst_infer

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / ".ci/release"
URL = "https://git.example/owner/condinst-infer"
TARGET = re.compile(r"(!?)\[[^]]*\]\(([^)]*)\)")
PROGRAM = ROOT / "tests/support/user_program.py"
MISTAKES = """import condinst_infer as ci
ci.no_such_name
ci.load(7)
ci.load("m.onnx")("a.jpg").box
ci.load("m.onnx").panoptic("a.jpg", threshold=1)
frame: ci.Frame = next(ci.load("m.onnx").stream(0))
"""


def ran(*words: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A finished command, which gets no path to the repository's package."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True
    )


def tracked() -> set[str]:
    """The repository's files; in an unpacked sdist what .gitignore does not name."""
    if (ROOT / ".git").exists():
        listed = ran("git", "ls-files", "-z").stdout.split("\0")
        return {name for name in listed if name and (ROOT / name).exists()}
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    generated = {"PKG-INFO", "setup.cfg"}
    return {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*")
        if path.is_file()
        and not any(fnmatch(part, name) for part in path.parts for name in ignored)
    } - generated


def relative_links(text: str) -> set[str]:
    return {target for _, target in TARGET.findall(text) if not target.startswith("https://")}


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `.ci/release` wrote."""
    folder = tmp_path_factory.mktemp("release") / "dist"
    options = ("--url", f"{URL}/", "--no-isolation", "--unreleased", "-o", folder)
    done = ran(sys.executable, RELEASE, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [path.name for path in sorted(folder.iterdir())]
    assert done.stdout.count("PASSED") == len(names) == 2
    assert all(f"{folder / name}  " in done.stdout for name in names)
    assert all(f"{name}: installed, and its demo runs" in done.stdout for name in names)
    assert "git tag" not in done.stdout
    return folder


@pytest.fixture(scope="session")
def wheel(release: Path) -> Path:
    return next(release.glob("*.whl"))


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="session")
def unpacked(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's folder."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(next(release.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    # a path in a .pth file is searched last, and its own .pth files, as of `pip install -e`, aren't
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    words = ("install", "--no-deps", "--no-index", wheel)
    done = ran(sys.executable, "-m", "pip", "--python", python, *words)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_links_of_the_readme_lead_to_files() -> None:
    for target in relative_links((ROOT / "README.md").read_text()):
        path, _, _ = target.partition("#")
        assert (ROOT / path).exists(), target


def test_a_plain_build_describes_itself_without_relative_links(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "LICENSE", "condinst_infer/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    readme = (
        "A [link](docs/a.md), a [site](https://example.org), a [section](#b).\n![a cell](x.jpg)\n"
        "`code[0](a)`\n\n```python\nkernels[name](grid)\n```\n"
    )
    (tmp_path / "README.md").write_text(readme)
    described = project_wheel_metadata(tmp_path, isolated=False)
    assert described["Description-Content-Type"] == "text/markdown"
    changes = {
        "[link](docs/a.md)": "link",
        "[section](#b)": "section",
        "![a cell](x.jpg)": "*a cell*",
    }
    for old, new in changes.items():
        readme = readme.replace(old, new)
    assert described.json["description"] == readme


@pytest.mark.slow
def test_the_description_links_to_the_tagged_version(metadata: Message) -> None:
    text = str(metadata.get_payload())
    assert relative_links(text) == set()
    version = condinst_infer.__version__
    readme = TARGET.findall((ROOT / "README.md").read_text())
    for (picture, old), (_, new) in zip(readme, TARGET.findall(text), strict=True):
        if old.startswith("https://"):
            assert new == old
        else:
            kind = "raw" if picture else "blob"
            path = f"README.md{old}" if old.startswith("#") else old
            assert new == f"{URL}/{kind}/v{version}/{path}"
    assert metadata["Name"] == "condinst-infer" and metadata["Version"] == version


@pytest.mark.slow
def test_the_sdist_holds_every_tracked_file(unpacked: Path) -> None:
    found = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    generated = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert found - generated == tracked() - generated
    for name in tracked() - {"README.md", "setup.cfg", "PKG-INFO"}:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name


@pytest.mark.slow
def test_tests_run_in_the_sdist(unpacked: Path) -> None:
    names = ["project/test_readme", "project/test_package", "config/test_model_zoo", "test_nuclei"]
    paths = [f"tests/{name}.py" for name in names]
    done = ran(sys.executable, "-m", "pytest", "-q", *paths, folder=unpacked)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {name for name in tracked() if name.startswith("condinst_infer/")}
    native = {
        f"condinst_infer/data/{name.partition('/')[2]}"
        for name in tracked()
        if name.startswith(("engines/capi/", "export/triton/"))
    }
    assert "condinst_infer/py.typed" in package and len(native) > 10
    assert found == package | native


@pytest.mark.slow
def test_the_wheel_finds_nuclei(installed: Path, tmp_path: Path) -> None:
    done = ran(installed / "condinst", "demo", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "condinst-demo.jpg").stat().st_size > 10_000
    where = "import condinst_infer; print(condinst_infer.__file__)"
    path = Path(ran(installed / "python", "-c", where, folder=tmp_path).stdout.strip())
    assert path.is_relative_to(installed.parent)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a correct program and one with a mistake in each line but the first."""
    (tmp_path / "right.py").write_text(PROGRAM.read_text())
    (tmp_path / "wrong.py").write_text(MISTAKES)
    return tmp_path


@pytest.mark.slow
def test_mypy_knows_the_types_of_the_wheel(installed: Path, programs: Path) -> None:
    words = ("--strict", "--python-executable", installed / "python", "--no-error-summary")
    done = ran(sys.executable, "-m", "mypy", *words, "right.py", "wrong.py", folder=programs)
    places = re.findall(r"^(\w+\.py):(\d+): error", done.stdout, re.MULTILINE)
    wrong = [int(line) for name, line in places if name == "wrong.py"]
    assert len(wrong) == len(places) and done.stderr == "", done.stdout
    assert sorted(set(wrong)) == [2, 3, 4, 5, 6], done.stdout


@pytest.mark.slow
def test_pyright_knows_the_types_of_the_wheel(installed: Path, programs: Path) -> None:
    settings = {"typeCheckingMode": "strict", "include": ["."], "reportUnusedExpression": False}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    words = ("--outputjson", "--pythonpath", installed / "python")
    done = ran(sys.executable, "-m", "pyright", *words, folder=programs)
    found = json.loads(done.stdout)["generalDiagnostics"]
    places = [(Path(d["file"]).name, d["range"]["start"]["line"] + 1) for d in found]
    assert {name for name, _ in places} == {"wrong.py"}, done.stdout
    assert sorted({line for _, line in places}) == [2, 3, 4, 5, 6], done.stdout
