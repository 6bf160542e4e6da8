"""Compile engines/kernels/*.cu into the PTX that ships in the package, and write engines/README.md.

    pip install -r requirements-dev.txt
    python -m engines.compile_ptx

NVRTC is pinned: PTX of a newer one asks for a newer driver. Neither a GPU nor a CUDA toolkit is
needed. A test compiles again and compares byte for byte.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from condinst_infer.profiling.gpu import kernel_costs

SOURCES = Path(__file__).parent / "kernels"
PTX = Path(__file__).parents[1] / "condinst_infer" / "data" / "ptx"
README = Path(__file__).parent / "README.md"
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")
OPTIONS = ("--gpu-architecture=compute_75", "--std=c++17")


class Resources(NamedTuple):
    """What one kernel takes of a multiprocessor."""

    registers: int  # per thread
    shared_bytes: int  # per block
    spilled_bytes: int  # registers that went to memory


def ptx_from_source(path: Path) -> str:
    """PTX of one .cu file; RuntimeError with the compiler's words if it does not compile."""
    with ThreadPoolExecutor(1) as pool:  # NVRTC leaves its thread with another locale
        return pool.submit(_compiled, path).result()


def _compiled(path: Path) -> str:
    nvrtc = ctypes.CDLL(str(_nvidia("cuda_nvrtc") / "lib" / "libnvrtc.so.12"))
    program = ctypes.c_void_p()
    options = [*OPTIONS, f"--include-path={_nvidia('cuda_runtime') / 'include'}"]
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    source, name = path.read_bytes(), path.name.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None))
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(words), words)
        if failed:
            raise RuntimeError(_text(nvrtc, program, "ProgramLog"))
        return _text(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def resources(ptx: Path, architecture: str) -> dict[str, Resources]:
    """What each kernel of a .ptx file needs on an architecture such as "sm_80"."""
    command = [str(_nvidia("cuda_nvcc") / "bin" / "ptxas"), "-v", f"-arch={architecture}"]
    done = subprocess.run(
        [*command, str(ptx), "-o", os.devnull], capture_output=True, text=True, check=True
    )
    found = {}
    for part in done.stderr.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        registers = int(re.findall(r"Used (\d+) registers", part)[0])
        shared = int((re.findall(r"(\d+) bytes smem", part) or ["0"])[0])
        found[name] = Resources(registers, shared, spills)
    return found


def resource_table() -> str:
    """Markdown: registers on each architecture, and shared memory, of every shipped kernel."""
    heads = ["kernel", "shared memory, bytes", *(f"registers, {a}" for a in ARCHITECTURES)]
    rows = [heads, ["---"] * len(heads)]
    for path in sorted(PTX.glob("*.ptx")):
        found = {a: resources(path, a) for a in ARCHITECTURES}
        for name in sorted(found[ARCHITECTURES[0]]):
            each = [found[a][name] for a in ARCHITECTURES]
            cells = [str(each[0].shared_bytes), *(str(e.registers) for e in each)]
            rows.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return text.value.decode()


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC failed with status {status}")


def _nvidia(package: str) -> Path:
    """The folder of one of NVIDIA's packages."""
    spec = importlib.util.find_spec(f"nvidia.{package}")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"nvidia.{package} is missing: pip install -r requirements-dev.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def written(text: str) -> str:
    """The README with its tables made anew."""
    for name, table in (("resources", resource_table()), ("work", kernel_costs.table())):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{after}"
    return text


def main() -> None:
    """Write one .ptx per .cu, and the tables in README.md."""
    PTX.mkdir(exist_ok=True)
    for path in sorted(SOURCES.glob("*.cu")):
        (PTX / path.with_suffix(".ptx").name).write_text(ptx_from_source(path))
    README.write_text(written(README.read_text()))


if __name__ == "__main__":
    main()
