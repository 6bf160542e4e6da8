"""The C library under AddressSanitizer and UndefinedBehaviorSanitizer, with hostile callers.

They make wrong calls, give odd names, fork, have another locale or closed streams.

Leaks of Python and of its packages count too, apart from what is made once.
"""

import hashlib
import os
import shutil
import stat
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import pytest

from condinst_infer.cli import capi as command
from condinst_infer.contract.metadata import DIGEST_KEY, KEY
from tests.support.bright_model import changed

ROOT = Path(__file__).parents[2]
CHECKS = ROOT / "tests" / "support" / "c_api"
CAPI = ROOT / "engines" / "capi"
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
LEAKS = {"PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "quarantine_size_mb=1"}  # each block is seen
NO_LEAKS = {"ASAN_OPTIONS": "detect_leaks=0"}  # several threads import at once, or nothing ends
pytestmark = pytest.mark.native


def run(*words: object, **variables: str) -> str:
    """stdout, which is UTF-8, of a program that ends with 0 and within two minutes."""
    done = subprocess.run(
        [os.fsencode(word) if isinstance(word, Path) else str(word) for word in words],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done.stdout.decode()


def compiled(folder: Path, compiler: str, source: str, *words: str) -> Path:
    """A program of tests/support/c_api with the library in `folder`."""
    target = folder / source.replace(".", "_")
    flags = [f"-I{folder}/include", f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib", "-lcondinst"]
    run(compiler, *words, *STRICT, CHECKS / source, *flags, "-pthread", "-lm", "-o", target)
    return target


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with sanitizers, built once for this file."""
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is missing")
    for name in ("libasan.so", "libubsan.so"):
        if "/" not in run("gcc", f"-print-file-name={name}"):
            pytest.skip(f"{name} of gcc is missing")
    folder = tmp_path_factory.mktemp("sanitized")
    wrapper = folder / "gcc"
    wrapper.write_text(f'#!/bin/sh\nexec gcc {" ".join(SANITIZE)} "$@"\n')
    wrapper.chmod(0o755)
    command.build(folder, str(wrapper))
    return folder


@pytest.fixture(scope="module")
def hostile(prefix: Path) -> Path:
    """tests/support/c_api/hostile.c."""
    return compiled(prefix, "gcc", "hostile.c", "-std=c99", *SANITIZE)


def test_the_library_compiles_without_a_warning(prefix: Path) -> None:
    folders = {sysconfig.get_path(name) for name in ("include", "platinclude")}
    python = [word for folder in sorted(folders) for word in ("-isystem", folder)]
    names = [f'-DCONDINST_{name}="x"' for name in ("VERSION", "EXECUTABLE", "LIBPYTHON")]
    more = ("-Wconversion", "-Wshadow", "-Wstrict-prototypes")
    source = CAPI / "condinst.c"
    run("gcc", "-std=c11", "-fsyntax-only", *STRICT, *more, *python, *names, source)


def test_wrong_calls_are_refused(hostile: Path, bright_model: Path) -> None:
    run(hostile, "arguments", bright_model, **LEAKS)


@pytest.mark.slow
def test_wrong_calls_are_exceptions_in_cpp(prefix: Path, bright_model: Path, photos: Path) -> None:
    program = compiled(prefix, "g++", "hostile.cpp", "-std=c++17", *SANITIZE)
    run(program, bright_model, photos / "a.png", **NO_LEAKS)


def put_names(folder: Path, suffix: str, content: bytes) -> list[tuple[Path, str]]:
    """(path, word of the error) of what is no file, can't be read or has an odd name."""
    fifo, loop, device, socket = (
        folder / f"{name}{suffix}" for name in ("fifo", "loop", "device", "socket")
    )
    (folder / f"folder{suffix}").mkdir()
    os.mkfifo(fifo)
    os.mknod(socket, stat.S_IFSOCK | 0o600)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    (folder / f"link{suffix}").symlink_to(fifo)
    (folder / f"dangling{suffix}").symlink_to(folder / "nothing")
    (folder / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    (folder / f"noise{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / f"empty{suffix}").touch()
    word = "does not exist"
    return [
        (folder / f"folder{suffix}", "is a folder"),
        *((path, "is a FIFO") for path in (fifo, folder / f"link{suffix}")),
        (socket, "is a socket"),
        (device, "is a device"),
        (loop, "Too many levels of symbolic links"),
        *((folder / f"{name}{suffix}", "") for name in ("cut", "noise", "empty")),
        (folder / f"dangling{suffix}", word),
        (folder / f"cut{suffix}" / f"x{suffix}", word),
        (folder / f"{'x' * 256}{suffix}", "File name too long"),
        (folder / Path(*["y" * 100] * 50) / f"m{suffix}", "File name too long"),
        (folder / os.fsdecode(b"\xe9t\xe9" + suffix.encode()), rf"\xe9t\xe9{suffix} {word}"),
        (folder / f"é€𝄞{suffix}", f"é€𝄞{suffix} {word}"),
        (folder / f"%s%n%99999d{suffix}", f"%s%n%99999d{suffix} {word}"),
        (folder / f"two\nlines{suffix}", word),
    ]


def assert_refused(
    program: Path, model: Path, what: str, status: str, table: list[tuple[Path, str]]
) -> None:
    said = run(program, "paths", model, what, *(path for path, _ in table), **LEAKS).splitlines()
    assert len(said) == len(table)
    for line, (path, word) in zip(said, table, strict=True):
        name, text = line.split("\t")
        assert name == status and text and word in text, (path, line)


def test_models_that_can_not_be_opened(hostile: Path, bright_model: Path, tmp_path: Path) -> None:
    table = put_names(tmp_path, ".onnx", bright_model.read_bytes())
    broken = {"json": "{", "list": "[]", "text": "\N{SNOWMAN}" * 3000, "none": None}
    for name, value in broken.items():
        path = changed(bright_model, tmp_path / f"{name}.onnx", KEY, value)
        if value is not None:  # with the checksum that belongs to it
            changed(path, path, DIGEST_KEY, hashlib.sha256(value.encode()).hexdigest())
        table.append((path, name + ".onnx"))
    foreign = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(onnx.GraphProto(name="g")), foreign)
    table += [(foreign, ""), (Path("/dev/full"), "is no model file"), (Path("/"), "no model file")]
    table += [(tmp_path / Path(*["y" * 100] * 50), ".onnx, .engine or .safetensors")]
    assert_refused(hostile, bright_model, "open", "CONDINST_BAD_MODEL", table)
    assert run(hostile, "paths", bright_model, "open", "", **LEAKS).startswith(
        "CONDINST_BAD_MODEL\tthe path is empty"
    )


def test_images_that_can_not_be_read(
    hostile: Path, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    table = put_names(tmp_path, ".png", (photos / "a.png").read_bytes())
    table += [(Path("/dev/zero"), "is a device"), (Path("/"), "is a folder")]
    assert_refused(hostile, bright_model, "read", "CONDINST_BAD_INPUT", table)


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"LANG": "x"}],
)
def test_names_open_in_any_locale(
    hostile: Path, bright_model: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    names = [tmp_path / name for name in ("é.onnx", os.fsdecode(b"\xe9t\xe9.onnx"), "a\nb\t.onnx")]
    for name in names:
        shutil.copy(bright_model, name)
    said = run(hostile, "paths", bright_model, "open", *names, **NO_LEAKS, **locale)
    assert said == "CONDINST_OK\t\n" * 3
    run(hostile, "host", bright_model, **NO_LEAKS, **locale)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["PYTHONHOME", "PYTHONPATH"])
def test_a_python_that_can_not_start_is_told(
    hostile: Path, bright_model: Path, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "encodings.py").write_text("raise ImportError('broken')")
    done = subprocess.run(
        [hostile, "host", bright_model],
        capture_output=True,
        timeout=60,
        text=True,
        env={**os.environ, **NO_LEAKS, variable: str(tmp_path)},
    )
    assert done.returncode == 3 and "Sanitizer" not in done.stderr
    assert "CONDINST_PYTHON instead" in done.stderr and f"{variable} is {tmp_path}" in done.stderr


@pytest.mark.slow
def test_500_cycles_leave_nothing(hostile: Path, prefix: Path, bright_model: Path) -> None:
    run(hostile, "cycles", bright_model, 500, **LEAKS)
    plain = prefix / "plain"
    command.build(plain, "gcc")
    program = compiled(plain, "gcc", "hostile.c", "-std=c99")
    kib = int(run(program, "cycles", bright_model, 500))
    assert kib < 4096  # in 400 cycles; 370 to 920 KiB in 3 runs of 200 to 800


@pytest.mark.slow
@pytest.mark.parametrize("what", ["threads", "fork"])
def test_threads_and_forks(hostile: Path, bright_model: Path, what: str) -> None:
    run(hostile, what, bright_model, **NO_LEAKS)
