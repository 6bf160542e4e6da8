"""The kernels of engines/kernels on a CPU: a stand-in for NVIDIA's driver library, built by g++.

`load()` puts it in the place of libcuda.so.1 for this process, so that what runs is
condinst_infer.cuda.driver itself. For tests and for trying the benchmarks; it is slow.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from condinst_infer.cuda.arrays import DeviceArray
from engines.compile_ptx import PTX, SOURCES

HERE = Path(__file__).parent
SCHEDULES = ("ascending", "descending", "shuffled")  # orders in which threads of a block run
OPTIONS = (
    "-std=c++20",
    "-O2",
    "-ffp-contract=off",
    "-fPIC",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
)


def build(folder: Path, sources: Path = SOURCES) -> Path:
    """The driver library, made in `folder` from the kernels in `sources`.

    Raises:
        RuntimeError: there is no g++, or a source does not compile.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is missing; install it: apt-get install g++")
    units = [HERE / "driver.cpp"]
    for source in sorted(sources.glob("*.cu")):
        names = re.findall(r"\.entry (\w+)\(", (PTX / f"{source.stem}.ptx").read_text())
        units.append(folder / f"{source.stem}.cpp")
        lines = ['#include "cuda_on_cpu.h"', f'#include "{source}"']
        units[-1].write_text(
            "\n".join([*lines, *(f"EMULATED_KERNEL({name})" for name in names), ""])
        )
    objects = [folder / f"{unit.stem}.o" for unit in units]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda unit, o: _run(compiler, "-c", unit, "-o", o), units, objects))
    library = folder / "libcuda.so.1"
    _run(compiler, "-shared", "-Wl,-soname,libcuda.so.1", *objects, "-o", library)
    return library


def _run(compiler: str, *words: str | Path) -> None:
    command = [compiler, *OPTIONS, f"-I{HERE}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the kernels don't compile for the CPU:\n{done.stderr}")


def host(array: DeviceArray) -> np.ndarray:
    """`array` itself: the emulator's device memory is host memory."""
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.pointer)
    return np.ndarray(array.shape, array.dtype, memoryview(raw))


class Emulator:
    """The loaded library, and what a real driver would not tell."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for function in (self._library.emulator_failure, self._library.emulator_live):
            function.restype = ctypes.c_char_p

    def schedule(self, name: str) -> None:
        """Run the threads of every later block in the order `name`, one of SCHEDULES."""
        self._library.emulator_schedule(SCHEDULES.index(name))

    def failure(self) -> str:
        """What went wrong since the last call; empty if nothing did."""
        return self._library.emulator_failure().decode()

    def fault(self, rules: str = "") -> None:
        """Let calls of the driver fail, as engines/emulator/faults.h describes; "" lets none."""
        self._library.emulator_fault(rules.encode())

    def fired(self) -> int:
        """How many calls the rules of the last `fault` made fail."""
        return self._library.emulator_fired()

    def devices(self, number: int) -> None:
        """Have so many GPUs from now on, 1 to 4."""
        self._library.emulator_devices(number)

    def live(self) -> dict[str, int]:
        """Objects of the driver that were made and not freed, by kind."""
        pairs = (word.rpartition("=") for word in self._library.emulator_live().decode().split(";"))
        return {kind: int(number) for kind, _, number in pairs if kind}

    def allocations(self) -> int:
        """How many pieces of device memory are allocated now."""
        return self._library.emulator_allocations()


_loaded: list[Emulator] = []


def load() -> Emulator:
    """The driver of this process from now on; must come before the first use of CUDA."""
    if not _loaded:
        with tempfile.TemporaryDirectory() as folder:
            _loaded.append(Emulator(build(Path(folder))))
    return _loaded[0]
