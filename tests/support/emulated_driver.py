"""The emulated CUDA driver as a file that other processes load, right or with a fault in a kernel.

A process that is started with `environment` finds it in the place of NVIDIA's.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from engines import emulator
from engines.compile_ptx import SOURCES
from tests.support.shared_files import shared_file


class Fault(NamedTuple):
    """A mistake in a kernel, and the groups of checks that have to find it."""

    name: str
    source: str  # stem of the .cu file
    right: str  # text that stands there once
    wrong: str
    found_by: set[str]


def driver_folder(factory: pytest.TempPathFactory, *sources: str) -> Path:
    """The folder of the right driver and of its object files, built once in a test run.

    Args:
        sources: stems of the .cu files whose kernels it has, to build it faster; none for all.
    """
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")

    def write(mark: Path) -> None:
        folder = mark.parents[1] / "objects"
        folder.mkdir()
        for stem in sources:
            shutil.copy(SOURCES / f"{stem}.cu", folder)
        emulator.build(folder, folder if sources else SOURCES)
        mark.touch()

    name = "-".join(["emulated_driver", *sources])
    return shared_file(factory, f"{name}/built", write).with_name("objects")


def _write_faulty(fault: Fault, folder: Path) -> Path:
    """Write the source with the fault into `folder`."""
    text = (SOURCES / f"{fault.source}.cu").read_text()
    assert text.count(fault.right) == 1, f"{fault.name}: {text.count(fault.right)} such places"
    path = folder / f"{fault.source}.cu"
    path.write_text(text.replace(fault.right, fault.wrong))
    return path


def plant(fault: Fault, right: Path, folder: Path) -> None:
    """Make a driver with the fault in `folder`: one unit is compiled, the others are of `right`."""
    source = _write_faulty(fault, folder)
    for path in right.glob("*.o"):
        if path.stem != fault.source:
            (folder / path.name).symlink_to(path)
    unit = folder / f"{fault.source}.cpp"
    lines = (right / unit.name).read_text().splitlines()
    lines[1] = f'#include "{source}"'  # in the place of the right one
    unit.write_text("\n".join([*lines, ""]))
    compiler = shutil.which("g++")
    assert compiler
    emulator._run(compiler, "-c", unit, "-o", folder / f"{fault.source}.o")
    emulator._run(
        compiler, "-shared", "-Wl,-soname,libcuda.so.1", *folder.glob("*.o"),
        "-o", folder / "libcuda.so.1",
    )  # fmt: skip


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables of a process that finds the driver in `folder`."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), **variables}
