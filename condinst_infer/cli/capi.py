"""`condinst capi`: the library for C and C++ of engines/capi, and flags for a compiler."""

import errno
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import condinst_infer
from condinst_infer.cli.options import Verb
from condinst_infer.errors import ConfigError
from condinst_infer.system.files import native_sources
from condinst_infer.system.outputs import atomic_file, write_link
from condinst_infer.system.paths import exists

HEADERS = ("condinst.h", "condinst.hpp")
TEMPLATES = {  # of engines/capi -> where it belongs
    "condinst.pc.in": "lib/pkgconfig/condinst.pc",
    "condinst-config.cmake.in": "lib/cmake/condinst/condinst-config.cmake",
    "condinst-config-version.cmake.in": "lib/cmake/condinst/condinst-config-version.cmake",
}


@dataclass(frozen=True, kw_only=True)
class CApiOptions:
    """Options of `condinst capi`."""

    action: str | None
    include: bool
    libs: bool
    cmake: bool
    output: Path | None
    compiler: str | None


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `CApiOptions`."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("build",),
        metavar="build",
        help="compile libcondinst for the Python that runs this command",
    )
    parser.add_argument(
        "--include", action="store_true", help="print the compiler option for the headers"
    )
    parser.add_argument("--libs", action="store_true", help="print the linker options")
    parser.add_argument(
        "--cmake",
        action="store_true",
        help="print the folder for condinst_DIR, where find_package(condinst) looks",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to build the library in (default: condinst, in the Python environment)",
    )
    parser.add_argument(
        "--compiler", metavar="CC", help="compiler for build (default: $CC, else cc)"
    )


def run(options: CApiOptions) -> int:
    """Build the library, or print flags of the one that was built."""
    folder = (options.output or Path(sys.prefix) / "condinst").resolve()
    if options.action == "build":
        build(folder, options.compiler)
        again = f" -o {folder}" if options.output else ""
        print(f"libcondinst {condinst_infer.__version__} for {sys.executable} is in {folder}")
        print(f"compile with: cc main.c $(condinst capi --include --libs{again})")
        return 0
    words = list(_flags(options, folder))
    if not words:
        raise ConfigError(
            "say what to do: build, or --include, --libs or --cmake. See: condinst capi --help"
        )
    if not exists(folder / "lib" / library(native_sources("capi"))):
        raise ConfigError(f"there is no libcondinst in {folder}. Build it: condinst capi build")
    print(" ".join(words))
    return 0


def _flags(options: CApiOptions, folder: Path) -> Iterator[str]:
    if options.include:
        yield f"-I{folder / 'include'}"
    if options.libs:
        yield from (f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}", "-lcondinst")
    if options.cmake:
        yield str(folder / "lib" / "cmake" / "condinst")


def build(folder: Path, compiler: str | None = None) -> None:
    """Compile the library for the running Python into `folder`, with headers and package files.

    Args:
        folder: made if missing; gets include/ and lib/, like any prefix.
        compiler: of C or C++, such as "cc" or "g++-13"; None is $CC, else cc.

    Raises:
        ConfigError: there is no compiler, no shared libpython or no Python.h, or it doesn't
            compile.
        InputError: the folder can't be written.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"condinst capi build works on Linux, not on {sys.platform} yet.")
    compiler = compiler or os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"the compiler {compiler} is missing. Install one (apt-get install gcc) or name "
            "yours: condinst capi build --compiler clang"
        )
    source, python = native_sources("capi"), _libpython()
    name = library(source)
    with atomic_file(folder / "lib" / name) as part:
        _compile(
            [compiler, *_compiler_arguments(source, python), f"-Wl,-soname,{name}", "-o", str(part)]
        )
    write_link(folder / "lib" / "libcondinst.so", name)
    for header in HEADERS:
        with atomic_file(folder / "include" / header) as part:
            shutil.copyfile(source / header, part)
    values = {"PREFIX": str(folder), "VERSION": condinst_infer.__version__, "LIBRARY": name}
    for template, path in TEMPLATES.items():
        with atomic_file(folder / path) as part:
            part.write_text(_fill((source / template).read_text(), values))


def library(source: Path) -> str:
    """The file name of the library, which ends in the number of its ABI."""
    number = re.search(r"#define CONDINST_ABI (\d+)", (source / "condinst.h").read_text())
    assert number is not None
    return f"libcondinst.so.{number[1]}"


def _compiler_arguments(source: Path, python: Path) -> list[str]:
    """Words for the compiler, without the output."""
    includes = {sysconfig.get_path(name) for name in ("include", "platinclude")}
    if not any(exists(Path(folder) / "Python.h") for folder in includes):
        raise ConfigError(
            f"Python.h is missing in {sysconfig.get_path('include')}. Install the development "
            "package of this Python, such as python3-dev."
        )
    macros = {
        "VERSION": condinst_infer.__version__,
        "EXECUTABLE": sys.executable,
        "LIBPYTHON": python.name,
    }
    return [
        *("-x", "c", "-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra"),
        *(f"-DCONDINST_{name}={_literal(value)}" for name, value in macros.items()),
        *(f"-I{folder}" for folder in sorted({*includes, str(source)})),
        str(source / "condinst.c"),
        *("-x", "none", str(python), f"-Wl,-rpath,{python.parent}", "-ldl"),
    ]


def _literal(text: str) -> str:
    """`text` in C."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _libpython() -> Path:
    """The shared library of the running Python."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folders = [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"]
    for folder in folders:
        if ".so" in name and exists(path := Path(folder) / name):
            return path
    raise ConfigError(
        f"the Python in {sys.base_prefix} has no shared libpython, which a program in C needs. "
        "Use one that has: that of the system with its development package (python3-dev), or "
        "one configured with --enable-shared."
    )


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if (full := os.strerror(errno.ENOSPC)) in done.stderr:  # the linker says so, in no error
            raise OSError(errno.ENOSPC, full)
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise ConfigError(f"{command[0]} can't compile the library: {lines[0]}")


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


VERB = Verb(
    "condinst capi build\n"
    "  c++ -std=c++17 main.cpp $(condinst capi --include --libs)\n"
    "  cmake -Dcondinst_DIR=$(condinst capi --cmake) ...",
    add_options,
    CApiOptions,
    run,
    outputs={"output": "folder"},
)
