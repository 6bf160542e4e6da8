"""The C and C++ API: compiled with the user's compiler, from hosts with and without Python."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

import condinst_infer as ci
from benchmarks import capi as timed
from condinst_infer import errors
from condinst_infer.cli import capi as command
from condinst_infer.serving import c_api
from condinst_infer.system import files
from tests.support.command_line import Run, assert_refused

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "engines" / "capi" / "examples"
CHECKS = ROOT / "tests" / "support" / "c_api"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
pytestmark = pytest.mark.native
Compile = Callable[..., Path]


def run(*words: object, status: int = 0, variables: Mapping[str, str] | None = None) -> str:
    """stdout of a program whose Python sees this package, and `variables`."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `condinst capi build` built the library."""
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is missing")
    folder = tmp_path_factory.mktemp("capi") / "prefix"
    command.build(folder, "gcc")
    return folder


@pytest.fixture(scope="module")
def compiled(prefix: Path) -> Compile:
    """Compiles a source against the library in `prefix`, strictly, as the standard says."""

    def program(source: Path, compiler: str, standard: str, *words: str) -> Path:
        target = prefix / f"{source.stem}-{compiler}-{standard}"
        flags = [f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"]
        flags += ["-lcondinst", *words]
        run(compiler, f"-std={standard}", *STRICT, source, *flags, "-o", target)
        return target

    return program


@pytest.fixture(scope="module")
def checks(compiled: Compile) -> Path:
    """tests/support/c_api/checks.c."""
    return compiled(CHECKS / "checks.c", "gcc", "c99", "-pthread", "-lm", "-ldl")


def test_examples_equal_python(compiled: Compile, demo_folder: Path, tmp_path: Path) -> None:
    model, photo = demo_folder / "nuclei.onnx", demo_folder / "nuclei.jpg"
    found = ci.load(model)(str(photo))
    lines = [
        f"{name} {score:.9g} at {x1:.9g} {y1:.9g} {x2:.9g} {y2:.9g}"
        for name, score, (x1, y1, x2, y2) in zip(
            found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    colours = np.array([(230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200),
                        (245, 130, 48), (145, 30, 180)])[:, ::-1]  # fmt: skip
    assert found.image is not None
    painted = found.image.copy()
    for k in reversed(range(len(found))):
        inside = found.masks[k]
        painted[inside] = (found.image[inside].astype(int) + colours[k % 6]) // 2
    for source, compiler, standard in (
        ("overlay.c", "gcc", "c99"),
        ("overlay.cpp", "g++", "c++17"),
    ):
        program, output = compiled(EXAMPLES / source, compiler, standard), tmp_path / "overlay.png"
        assert b"\0libcondinst.so.1\0" in program.read_bytes()  # the ABI it needs
        assert run(program, model, photo, output).splitlines() == lines
        assert np.array_equal(np.asarray(cv2.imread(str(output))), painted)
        output.unlink()
    shown = cv2.imread(str(ROOT / "docs" / "pictures" / "cpp.jpg"))
    assert shown is not None and cv2.PSNR(shown, painted) > 30  # the picture of the tutorial
    assert len(lines) > 50
    compiled(EXAMPLES / "overlay.cpp", "g++", "c++20")  # with std::span


def test_threads_do_not_cross(compiled: Compile, bright_model: Path, photos: Path) -> None:
    program = compiled(EXAMPLES / "threads.cpp", "g++", "c++17", "-pthread")
    lines = run(program, bright_model, photos / "a.png", 50, 1, 8).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "8"]
    assert all(line.endswith(" 0 wrong") for line in lines)


def test_failures_are_codes_with_text(
    checks: Path, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    run(checks, "refuse", bright_model, photos / "a.png", tmp_path)


def test_memory_stays(checks: Path, bright_model: Path) -> None:
    calls_kib, models_kib = map(int, run(checks, "endure", bright_model, 500).split())
    assert calls_kib < 1024  # 8 to 72 KiB in 4 runs
    assert models_kib < 1024  # 24 to 56 KiB


def test_a_host_that_runs_python(
    prefix: Path, bright_model: Path, panoptic_onnx: Path, demo_folder: Path
) -> None:
    model, photo = demo_folder / "nuclei.onnx", demo_folder / "nuclei.jpg"
    library = prefix / "lib" / "libcondinst.so"
    run(sys.executable, CHECKS / "host.py", library, bright_model, panoptic_onnx, model, photo)


def test_a_host_that_loads_plugins(compiled: Compile, prefix: Path, bright_model: Path) -> None:
    program = compiled(CHECKS / "plugin.c", "gcc", "c99", "-Wl,--as-needed", "-ldl")
    run(program, prefix / "lib" / "libcondinst.so.1", bright_model)


@pytest.mark.slow
@pytest.mark.usefixtures("prefix")  # skips where there is no compiler
def test_memory_of_the_c_side(
    bright_model: Path, photos: Path, demo_folder: Path, tmp_path: Path
) -> None:
    """AddressSanitizer watches it, every block is freed, and each may be refused."""
    wrapper = tmp_path / "sanitizing-gcc"
    blocks = CHECKS / "blocks.c"
    sanitize = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    wrapper.write_text(
        f'#!/bin/sh\nexec gcc {sanitize} -g "$@" {blocks} -Wl,--wrap=malloc,--wrap=free\n'
    )
    wrapper.chmod(0o755)
    prefix = tmp_path / "prefix"
    command.build(prefix, str(wrapper))
    program, photo = tmp_path / "checks", photos / "a.png"
    flags = [*sanitize.split(), f"-I{prefix}/include", f"-L{prefix}/lib", "-lcondinst"]
    flags += [f"-Wl,-rpath,{prefix}/lib", "-pthread", "-lm", "-ldl", "-o", str(program)]
    run("gcc", "-std=c99", *STRICT, "-g", "-DBLOCKS", CHECKS / "checks.c", *flags)
    asan = {"ASAN_OPTIONS": "detect_leaks=0"}  # Python never ends, so it would list Python's
    run(program, "starve", bright_model, photo, variables=asan)
    run(program, "refuse", bright_model, photo, tmp_path, variables=asan)
    run(program, "endure", bright_model, 20, variables=asan)


def test_the_python_is_that_of_the_options(
    checks: Path, bright_model: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty" / "bin" / "python"
    venv.create(tmp_path / "empty", with_pip=False)
    said = run(checks, "open", bright_model, empty, variables={"PYTHONPATH": ""})
    assert said.startswith("CONDINST_MISSING_PACKAGE") and str(empty) in said
    assert "pip install 'condinst-infer[cpu]'" in said
    assert run(checks, "open", bright_model, sys.executable).startswith("CONDINST_OK")
    said = run(checks, "open", bright_model, variables={"PYTHONHOME": str(tmp_path)})
    assert said.startswith("CONDINST_PYTHON") and "can't be started" in said


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("raise SystemExit(3)", "CONDINST_INTERNAL", "SystemExit: 3"),
        ("raise MemoryError", "CONDINST_OUT_OF_MEMORY", "MemoryError"),
        ("def open_model(*args): raise KeyboardInterrupt", "CONDINST_INTERNAL", "Keyboard"),
        ("def open_model(*args): return 7, 'é' * 600, None", "CONDINST_PYTHON", "é" * 511 + "\n"),
        ("def open_model(*args): return 1", "CONDINST_INTERNAL", "tuple"),
    ],
)
def test_no_exception_leaves(
    checks: Path, tmp_path: Path, line: str, status: str, text: str
) -> None:
    package = tmp_path / "condinst_infer"
    (package / "serving").mkdir(parents=True)
    for folder in (package, package / "serving"):
        (folder / "__init__.py").touch()
    (package / "serving" / "c_api.py").write_text(line)
    said = run(checks, "open", "x.onnx", variables={"PYTHONPATH": str(tmp_path)})
    assert said.startswith(status) and text in said


def test_every_error_has_its_status() -> None:
    for error, status, text in (
        (errors.ConfigError("a\nb"), 1, "a b"),
        (errors.ModelFileError("a"), 2, "a"),
        (errors.CheckpointError("a"), 2, "a"),
        (errors.InputError("a"), 3, "a"),
        (errors.SessionError("a"), 4, "a"),
        (errors.MissingExtraError("a"), 5, "a"),
        (ModuleNotFoundError("a"), 5, "a"),
        (MemoryError(), 6, "MemoryError: "),
        (KeyError("a"), 8, "KeyError: 'a'"),
        (SystemExit(3), 8, "SystemExit: 3"),
    ):

        @c_api.reply_to_c
        def raising(error: BaseException = error) -> None:
            raise error

        assert raising() == (status, text, None)
    with pytest.raises(cv2.error) as caught:
        raise cv2.error("a")
    assert c_api.reply_to_c(pytest.fail)("b")[0] == 8 and caught.value is not None


def test_packages_for_build_systems(
    condinst: Run, prefix: Path, demo_folder: Path, tmp_path: Path
) -> None:
    assert condinst("capi", "--cmake", "-o", prefix)[1] == f"{prefix}/lib/cmake/condinst\n"
    flags = condinst("capi", "--include", "--libs", "-o", prefix)[1].split()
    assert flags[:2] == [f"-I{prefix}/include", f"-L{prefix}/lib"]
    if shutil.which("pkg-config"):
        path = {"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig"}
        said = run("pkg-config", "--cflags", "--libs", "condinst", variables=path).split()
        assert sorted(said) == sorted(flags)
        assert (
            run("pkg-config", "--modversion", "condinst", variables=path) == f"{ci.__version__}\n"
        )
    if shutil.which("cmake") is None:
        pytest.skip("cmake is missing")
    shutil.copy(EXAMPLES / "CMakeLists.txt", tmp_path)
    for name in ("overlay.c", "overlay.cpp", "threads.cpp", "png.h"):
        shutil.copy(EXAMPLES / name, tmp_path)
    where = f"-Dcondinst_DIR={prefix}/lib/cmake/condinst"
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", where)
    run("cmake", "--build", tmp_path / "build", "--target", "overlay_c", "overlay_cpp")
    said = run(tmp_path / "build" / "overlay_cpp", "no.onnx", "no.jpg", "no.png", status=1)
    assert said == ""


def test_the_command_says_what_is_missing(
    condinst: Run, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ("capi", "build", "-o", tmp_path / "new")
    assert_refused(condinst("capi", "--libs", "-o", tmp_path), "condinst capi build")
    assert_refused(condinst("capi", "-o", prefix), "say what to do")
    assert_refused(condinst(*build, "--compiler", "no-such-cc"), "no-such-cc", "--compiler")
    assert_refused(condinst(*build, "--compiler", "false"), "can't compile")
    assert_refused(
        condinst("capi", "build", "-o", prefix / "include" / "condinst.h"),
        "is a file; give the name",
    )
    variables = sysconfig.get_config_var
    static = {"INSTSONAME": "libpython3.11.a"}
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: static.get(name, variables(name)))
    assert_refused(condinst(*build), "no shared libpython", "python3-dev")
    monkeypatch.undo()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert_refused(condinst(*build), "Python.h is missing")
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    assert_refused(condinst(*build), "without its capi sources")
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").rglob("*.so*"))


def test_an_installed_package_brings_the_sources(tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    words = ("-q", "build", "-b", tmp_path / "build", "--build-lib", lib)
    subprocess.run(
        [sys.executable, "setup.py", *map(str, words)], cwd=ROOT, check=True, capture_output=True
    )
    for source in (ROOT / "engines" / "capi", ROOT / "export" / "triton"):
        for path in filter(Path.is_file, source.rglob("*")):
            copy = lib / "condinst_infer" / "data" / path.relative_to(source.parent)
            assert "__pycache__" in path.parts or copy.read_bytes() == path.read_bytes()


def test_the_benchmark_runs(tmp_path: Path, prefix: Path, bright_model: Path) -> None:
    result = timed.measure(tmp_path, bright_model, repeats=2, threads=2)
    for found in result["formats"].values():
        around, python, call = (found[f"{name}_ms"]["p50"] for name in ("around", "python", "call"))
        assert 0 < around < call and 0 < python < call
