"""The shipped PTX is what the pinned compiler makes of engines/kernels, and fits every GPU."""

import locale
import re
from pathlib import Path

import pytest

from condinst_infer.cuda import kernels
from engines import compile_ptx as compiler
from engines.compile_ptx import ARCHITECTURES, PTX, README, SOURCES

pytest.importorskip("nvidia.cuda_nvrtc", reason="nvidia-cuda-nvrtc-cu12 is not installed")

NAMES = sorted(path.stem for path in SOURCES.glob("*.cu"))


@pytest.mark.parametrize("name", NAMES)
def test_compiling_again_gives_the_shipped_bytes(name: str) -> None:
    before = locale.getencoding()
    assert compiler.ptx_from_source(SOURCES / f"{name}.cu") == kernels.ptx(name)
    assert locale.getencoding() == before  # the compiler changes it, where it runs


def test_every_source_ships_and_nothing_else_does() -> None:
    assert sorted(path.stem for path in PTX.glob("*")) == NAMES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_no_kernel_spills_or_needs_more_shared_memory_than_every_gpu_has(
    name: str, architecture: str
) -> None:
    found = compiler.resources(PTX / f"{name}.ptx", architecture)
    assert set(found) == set(re.findall(r"\.entry (\w+)\(", kernels.ptx(name)))
    for kernel, resources in found.items():
        threads = 1024 if kernel in ("class_nms", "owners_of_things") else 256
        assert resources.spilled_bytes == 0, kernel
        assert resources.shared_bytes <= 48 * 1024, kernel
        assert resources.registers * threads <= 65536, kernel  # of a multiprocessor


def test_the_ptx_is_old_enough_for_the_oldest_driver() -> None:
    for name in NAMES:
        assert ".version 8.2\n" in kernels.ptx(name)  # CUDA 12.2, driver 535
        assert ".target sm_75\n" in kernels.ptx(name)


def test_a_spill_would_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "spills.cu"
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* a, int n) {\n'
        "  float x[200];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 200; i++) x[i] = a[i * n];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 200; i++) a[i * n + threadIdx.x] = x[199 - i] * x[i];\n"
        "}\n"
    )
    ptx = source.with_suffix(".ptx")
    ptx.write_text(compiler.ptx_from_source(source))
    assert compiler.resources(ptx, "sm_80")["spills"].spilled_bytes > 0


def test_the_readme_has_the_present_tables() -> None:
    assert compiler.written(README.read_text()) == README.read_text()
