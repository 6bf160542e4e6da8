"""Every code block of the pages runs, or says why not and is checked without running."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.block_checks import ROOT, unrun_problems
from tests.support.code_blocks import Page, parse_page
from tests.support.page_folder import ModelFiles, write_page_folder
from tests.support.page_runs import (
    BlockFailure,
    PageRun,
    missing_programs,
    run_page,
    uses_c_library,
)
from tests.support.shared_files import shared_file
from tests.support.waiting import eventually

PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "engines" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
)


def read_page(name: str) -> Page:
    return parse_page((ROOT / name).read_text(), name)


def with_programs(name: str) -> bool:
    return any(block.runs for block in read_page(name).blocks)


@pytest.fixture(scope="session")
def page_folder(
    tmp_path_factory: pytest.TempPathFactory,
    nano_checkpoint: Path,
    nano_onnx: Path,
    panoptic_checkpoint: Path,
    panoptic_onnx: Path,
) -> Path:
    """The folder that every page starts with; nobody may change it."""
    models = ModelFiles(nano_checkpoint, nano_onnx, panoptic_checkpoint, panoptic_onnx)
    return shared_file(
        tmp_path_factory,
        "page_folder",
        lambda folder: write_page_folder(folder, models),
    )


@pytest.fixture
def folder(page_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `page_folder` for one page; 40 MB that nobody needs afterwards."""
    yield Path(shutil.copytree(page_folder, tmp_path / "folder"))
    shutil.rmtree(tmp_path / "folder")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where a run keeps its own files."""
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def skip_without_programs(page: Page) -> None:
    """Skip a page whose commands need what this machine does not have."""
    if missing := missing_programs(page):
        pytest.skip(f"{', '.join(missing)} is missing")
    if uses_c_library(page) and not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared libpython")


@pytest.mark.parametrize("name", PAGES)
def test_blocks_have_the_right_form_and_name_what_exists(name: str) -> None:
    page = read_page(name)
    assert not (problems := page.problems + unrun_problems(page)), "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if with_programs(name)])
def test_a_page_runs(name: str, folder: Path, scratch: Path) -> None:
    page = read_page(name)
    skip_without_programs(page)
    run_page(page, folder, scratch)


# The tests above find what is wrong


def page_of(*parts: str) -> Page:
    """The page "p.md": each part a block "LANGUAGE CODE" or other text, in lines of its own."""
    return parse_page("\n".join(parts), "p.md")


def fenced(info: str, *code: str) -> str:
    return "\n".join([f"```{info}", *code, "```"])


NOT_RUN = "<!-- not run: needs a GPU -->"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (fenced("bash", "ls"), "p.md:1: the fence says 'bash'"),
        (fenced("", "ls"), "p.md:1: the fence says ''"),
        (f"Text.\n\n{fenced('sh title=x', 'ls')}", "p.md:3: the fence says 'sh title=x'"),
        ("Text:\n\n    ls\n    ls\n\nMore.", "p.md:3: a code block by indentation"),
        ("# Title\n\tls", "p.md:2: a code block by indentation"),
        ("* item\n\nText.\n\n    ls", "p.md:5: a code block by indentation"),
        ("* item\n\n        ls", "p.md:3: a code block by indentation"),
        ("> ```sh\n> ls\n> ```", "p.md:1: a code block in a quotation"),
        ("```sh\nls", "p.md:1: the fence is never closed"),
        (f"{NOT_RUN}\n\n{fenced('sh', 'ls')}", "p.md:1: this comment is not directly above"),
        (f"Text.\n{NOT_RUN}", "p.md:2: this comment is not directly above"),
        (f"<!-- not run: needs luck -->\n{fenced('sh', 'ls')}", "p.md:1: <!-- not run: needs luck"),
        (f"<!-- not run -->\n{fenced('sh', 'ls')}", "p.md:1: <!-- not run --> is not"),
        (f"{NOT_RUN}\n{fenced('text', 'x')}", "p.md:2: text is never run"),
        (fenced("cpp", "int main() {}"), "p.md:2: the first line does not name the file"),
    ],
)
def test_a_wrong_form_has_its_line(text: str, problem: str) -> None:
    (found,) = page_of(text).problems
    assert found.startswith(problem)


def test_a_right_form_has_no_problem() -> None:
    page = page_of(
        "# Title",
        "* an item",
        "  of two lines",
        "",
        "  a paragraph in it",
        "    1. an inner item",
        "",
        "       with a paragraph",
        "",
        "   " + fenced("sh", "ls \\", "  -l").replace("\n", "\n   "),
        "a line",
        "    that goes on",
        "<!-- not run: needs a GPU and Docker -->",
        fenced("sh", "nvidia-smi"),
        "~~~text",
        "```",
        "~~~",
        fenced("c", "/* main.c */"),
        fenced("cmake", "# CMakeLists.txt"),
    )
    assert page.problems == []
    first, second, *others = page.blocks
    assert (first.place, first.language, first.code) == ("p.md:11", "sh", "ls \\\n  -l\n")
    assert (second.line, second.needs, second.runs) == (18, "a GPU and Docker", False)
    assert [block.language for block in others] == ["text", "c", "cmake"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("condinst predict m.onnx a.jpg -o out --turbo", "p.md:4: condinst predict"),
        ("condinst predict m.onnx a.jpg -o out --runtime tpu", "invalid choice: 'tpu'"),
        ("condinst predict m.onnx \\\n  a.jpg", "the following arguments are required: -o"),
        ("ls | (X=1 condinst foresee m.onnx)", "invalid choice: 'foresee'"),
        (".venv/bin/condinst info", "arguments are required: FILE"),
        ("docker run --rm x condinst info m.onnx --turbo", "unrecognized arguments: --turbo"),
        ("torchrun -m condinst_infer info m.onnx --turbo", "unrecognized arguments: --turbo"),
        ("x() { condinst info m.onnx --turbo; }", "unrecognized arguments: --turbo"),
        ("c++ a.cpp $(condinst capi --turbo) -o a", "unrecognized arguments: --turbo"),
        ("condinst train condinst_giga --train a --images b -o c", "no preset condinst_giga"),
        (
            "condinst train condinst_nano --train a --images b -o c --set colour=red",
            "there is no field colour",
        ),
        ("pip install 'condinst-infer[cpu,warp]'", "pyproject.toml has no extra warp"),
        ("python -m pip install '.[warp]'", "pyproject.toml has no extra warp"),
        ("pip install -r requirements-prod.txt", "there is no requirements-prod.txt"),
        ("docker build -f engines/docker/tpu.Dockerfile .", "no engines/docker/tpu.Dockerfile"),
        ("for x in a; do", "p.md:4: syntax error"),
    ],
)
def test_a_wrong_command_that_does_not_run_is_found(code: str, problem: str) -> None:
    page = page_of("Text.", "<!-- not run: needs hours -->", fenced("sh", code))
    (found,) = unrun_problems(page)
    assert problem in found and found.startswith("p.md:4: ")


def test_right_commands_that_do_not_run_have_no_problem() -> None:
    code = """
# isn't a command: condinst foresee
nuclei() { condinst train condinst_nano --train a.json --images b -o runs/$1 "${@:2}"; }
condinst predict model.onnx photos/ -o out 2> log.txt --json   # it's quick
condinst --help && condinst demo
condinst serve model.onnx > log.txt 2>&1 &
docker build -f engines/docker/cpu.Dockerfile -t condinst .
docker run --rm condinst predict model.onnx photos/ -o out
pip install 'condinst-infer[cpu,ray]' supervision -r requirements-dev.txt -e .
cat > Dockerfile <<'END'
RUN pip install 'condinst-infer[it's]'
END
"""
    assert unrun_problems(page_of(NOT_RUN, fenced("sh", code))) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x = (", "p.md:6: '(' was never closed"),
        ("ci.lode('m.onnx')", "p.md:6: condinst_infer has no lode"),
        ("ci.errors.TurboError", "condinst_infer.errors has no TurboError"),
        ("from condinst_infer.video import magic", "condinst_infer.video has no magic"),
        ("import condinst_infer.magic", "No module named 'condinst_infer.magic'"),
        ("ci.load('m.onnx', turbo=True)", "unexpected keyword argument 'turbo'"),
        ("ci.load()", "missing a required argument: 'path'"),
        ("ci.load('m.onnx', 'cpu')", "too many positional arguments"),
        ("pipeline('a.jpg', threshold=1)", "unexpected keyword argument 'threshold'"),
        ("for x in pipeline.map([], turbo=1): x", "unexpected keyword argument 'turbo'"),
        ("with pipeline.stream('a', turbo=1) as x: x", "unexpected keyword argument 'turbo'"),
        ("pipeline.panoptic('a', turbo=1)", "unexpected keyword argument 'turbo'"),
        ("pipeline.panopticon('a')", "Pipeline has no panopticon"),
        ("with ci.load('m') as p:\n  p.colour", "p.md:7: Pipeline has no colour"),
        ("result = pipeline('a.jpg')\nresult.mask", "p.md:7: Instances has no mask"),
        ("ci.load('m').panoptic('a.jpg').png()", "PanopticSegmentation has no png"),
        ("pipeline.config.colour", "CondInstConfig has no colour"),
    ],
)
def test_wrong_names_in_python_that_does_not_run_are_found(code: str, problem: str) -> None:
    above = fenced("python", "import condinst_infer as ci")
    page = page_of(above, NOT_RUN, fenced("python", code))
    (found,) = unrun_problems(page)
    assert problem in found and found.startswith("p.md:")


def test_right_names_in_python_that_does_not_run_have_no_problem() -> None:
    code = """
import torch
import condinst_infer as ci
from condinst_infer import InputError
from condinst_infer.video import sources
options = {"workers": 2}
pipeline = ci.load("model.engine", device="cuda", **options)
result = pipeline(torch.zeros(9, 9, 3), score_threshold=0.5)
result.on_device["masks"], len(result), result.names
for frame, result in pipeline.stream("camera:0", workers=2):
    frame.index, result.whatever
pipeline(["a.jpg"])[0].boxes
pipeline("a.jpg").plot().shape
with ci.load("model.onnx") as pipeline:
    pipeline.metadata.batch, pipeline.config.detect.score_threshold
raise ci.errors.SessionError("x") from InputError("y")
"""
    assert unrun_problems(page_of(NOT_RUN, fenced("python", code))) == []
    (found,) = unrun_problems(page_of(NOT_RUN, fenced("python", "ci.load('m')")))
    assert found == "p.md:3: ci is not imported above"


def test_functions_that_the_header_lacks_are_found() -> None:
    code = ("condinst_version();", "int condinst_count;", "condinst_fly(1);")
    (found,) = unrun_problems(page_of(NOT_RUN, fenced("cpp", *code)))
    assert found == "p.md:5: condinst.h has no condinst_fly"


def run_blocks(page: Page, tmp_path: Path, limit_s: float = 60) -> str:
    """Run a page in an empty folder; the message of its failure, or what the run printed."""
    assert page.problems == []
    folder, scratch = tmp_path / "empty", tmp_path / "own"
    folder.mkdir()
    scratch.mkdir()
    try:
        with PageRun(folder, scratch, limit_s) as run:
            for block in page.blocks:
                run.run(block)
    except BlockFailure as failure:
        return str(failure)
    return (scratch / "output.txt").read_text()


def test_blocks_share_a_folder_variables_and_names(tmp_path: Path) -> None:
    page = page_of(
        fenced("sh", "NAME=word", "mkdir -p sub && cd sub"),
        fenced("python", "from pathlib import Path", "import sys", "Path('sub/a').write_text('b')"),
        fenced("sh", 'echo "$NAME" $(cat a) and \\', "  more"),
        fenced("text", "word b"),
        fenced("python", "print(Path('sub/c.h').exists(), __name__)"),
        fenced("c", "// sub/c.h"),
        fenced("python", "print(Path('sub/c.h').read_text())"),
        fenced("sh", "pip install 'condinst-infer[cpu]' && exit 1", "docker run x; exit 1"),
        NOT_RUN,
        fenced("sh", "exit 1"),
        fenced("sh", "(false) || ! false", "python -c 'import condinst_infer, sys'"),
    )
    assert run_blocks(page, tmp_path) == "word b and more\nFalse __main__\n// sub/c.h\n\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("echo one\necho two\nfalse # why\necho never", "p.md:5: false # why\nfalse\none\ntwo"),
        ("ls missing | cat", "p.md:3: ls missing | cat\ncat\nls: "),
        ("x() {\n  false\n}\nx", "p.md:4: false"),
        ("echo $MISSING", "p.md:3: echo $MISSING\n"),
        ("for x in a; do", "p.md:3: for x in a; do\n"),
        ("seq 100\nfalse", "p.md:4: false\n81\n82\n"),
        ("pip install 'condinst-infer[warp]'", "pip install 'condinst-infer[warp]': pyproject"),
        ("condinst serve model.onnx", "p.md:3: a server must end with &"),
        ("condinst serve model.onnx --turbo &", "unrecognized arguments: --turbo"),
        ("exit 0", "p.md:3: exit 0"),
    ],
)
def test_a_command_that_fails_has_its_line_and_output(
    code: str, message: str, tmp_path: Path
) -> None:
    found = run_blocks(page_of("Text.", fenced("sh", code)), tmp_path)
    assert message in found and found.startswith("p.md:")


def test_a_line_of_python_that_fails_has_its_line_and_output(tmp_path: Path) -> None:
    page = page_of(
        fenced("python", "def f(x):", "    return 1 / x"),
        fenced("python", "print('so far')", "f(1)", "f(0)", "f(2)"),
    )
    found = run_blocks(page, tmp_path)
    assert found.startswith("p.md:8: f(0)\nso far\nTraceback")
    assert found.endswith("ZeroDivisionError: division by zero")


def test_a_block_that_never_ends_is_ended(tmp_path: Path) -> None:
    found = run_blocks(page_of(fenced("sh", "echo here", "sleep 1000")), tmp_path, limit_s=1)
    assert found == "p.md:2: echo here\ntook longer than 1 s\nhere"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_a_server_is_started_on_a_free_port_and_ended(tmp_path: Path, demo_folder: Path) -> None:
    address = "'http://127.0.0.1:8000/health'"
    page = page_of(
        fenced(
            "sh", f"MODEL={demo_folder / 'nuclei.onnx'}", 'condinst serve "$MODEL" \\', "  &  # a"
        ),
        fenced(
            "sh",
            f"curl -o health {address}",
            f"curl {address}y || echo none",
            "kill %1",
            "wait || true",
        ),
        fenced("sh", 'condinst serve "$MODEL" --port 8000 > log.txt 2>&1 &', "PID=$!"),
        fenced(
            "python", "import urllib.request", f"print(urllib.request.urlopen({address}).status)"
        ),
        fenced("sh", 'echo "$PID"'),
    )
    output = run_blocks(page, tmp_path)
    announced, error, none, ended, status, process = output.splitlines()
    assert " is at http://127.0.0.1:" in announced and (none, status) == ("none", "200")
    assert "returned error: 404" in error and ended.startswith("condinst: interrupted")
    eventually(lambda: has_ended(process))


def has_ended(process: str) -> bool:
    """Whether a process of Linux is over, or only waits for its parent to notice."""
    try:
        return " Z " in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True


@pytest.mark.slow
def test_long_steps_are_short(folder: Path, scratch: Path) -> None:
    train = (
        "condinst train condinst_nano --train train.json --images photos \\",
        "    --val val.json -o runs/first --recipe short --iterations 3000  # hours",
    )
    code = "import json; print(json.load(open('runs/first/config.json')))"
    page = page_of(fenced("sh", *train), fenced("python", code))
    run_page(page, folder, scratch)
    output = (scratch / "output.txt").read_text()
    assert "'iterations': 2" in output and "'short_sides': [96]" in output
