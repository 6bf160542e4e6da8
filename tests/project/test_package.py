"""The layers of the package: which room may import which."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import condinst_infer

ROOT = Path(condinst_infer.__file__).parent
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt")

# the rooms of condinst_infer/, lowest first: a room imports only rooms of the rows above its own
ROWS = [
    ["errors"],
    ["system"],
    ["config"],
    ["contract", "ops", "results"],
    ["model", "processing", "datasets"],
    ["checkpoint", "export", "cuda", "video"],
    ["trt"],
    ["runtimes"],
    ["pipeline", "verification"],
    ["evaluation"],
    ["quantization", "profiling", "train", "serving"],
    ["cli"],
    ["__main__", "__init__"],
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
FORBIDDEN = {
    **dict.fromkeys(["cuda", "trt", "runtimes"], {"torch", "model", "train", "export"}),
    "export": {"cuda", "trt", "runtimes", "train"},
    "ops": {"numpy"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def owner(path: Path) -> str:
    """The row a file belongs to: its package or its own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The dotted name of every import in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path} has a relative import"
            found.add(node.module)
            if node.module.startswith("condinst_infer"):  # what is imported may be a module
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_what_stands_above(path: Path) -> None:
    own = owner(path)
    forbidden = FORBIDDEN.get(own, set())
    if own == "runtimes" and path.stem.startswith("pytorch"):
        forbidden = {"train", "export"}
    assert own in ROW_OF, f"{own} has no row"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "condinst_infer":
            other = parts[1] if len(parts) > 1 else "__init__"
            other = other if other in ROW_OF else "__init__"
            allowed = other == own or ROW_OF[other] < ROW_OF[own]
            assert allowed or other == "__init__", f"{own} imports {other}"
            assert other not in forbidden, f"{own} imports {other}"
        else:
            assert parts[0] not in forbidden, f"{own} imports {parts[0]}"


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, condinst_infer, condinst_infer.config.presets, condinst_infer.config.model\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_root_has_four_files() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {
        *("__init__.py", "__main__.py", "errors.py", "pipeline.py")
    }


def dotted(path: Path) -> str:
    return ".".join(["condinst_infer", *path.relative_to(ROOT).with_suffix("").parts])


def test_modules_import_in_no_circle() -> None:
    """Neither at the top of a module nor later, in a function or for types only."""
    names = set(map(dotted, modules()))
    graph = {dotted(path): imported(path) & names for path in modules()}
    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


FORBIDDEN_STARTS = ("What", "Which", "How", "Whether", "Of", "Those", "Its")


def definitions() -> Iterator[tuple[Path, ast.AST]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_docstrings_begin_with_a_verb_or_a_subject() -> None:
    for path, node in definitions():
        first = (ast.get_docstring(node) or "").split(maxsplit=1)[:1]  # pyright: ignore
        assert not set(first) & set(FORBIDDEN_STARTS), f"{path}: {first}"


def test_no_class_name_is_used_twice() -> None:
    counts = Counter(node.name for _, node in definitions() if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--help"], 6),
        (["predict", "{data}/nuclei.onnx", "{data}/nuclei.jpg", "-o", "{out}"], 42),
    ],
    ids=["help", "predict"],
)
def test_a_command_loads_only_what_it_needs(
    words: list[str], most: int, demo_folder: Path, tmp_path: Path
) -> None:
    words = [word.format(data=demo_folder, out=tmp_path / "out") for word in words]
    code = (
        "import sys\nfrom condinst_infer.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "names = [m for m in sys.modules if m.partition('.')[0] == 'condinst_infer']\n"
        "print(len(names), *sorted(names), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stderr.split()[0]) <= most, done.stderr
