"""The stand-in for a GPU sees what it is there to see: kernels that are wrong on purpose."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engines.compile_ptx import ptx_from_source
from engines.emulator import SCHEDULES

pytest.importorskip("nvidia.cuda_nvrtc", reason="nvidia-cuda-nvrtc-cu12 is not installed")

KERNELS = """
constexpr int kThreads = 96;

template <bool kBarrier>
__device__ void reverse(const int* in, int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
extern "C" __global__ void reversed(const int* in, int* out) { reverse<true>(in, out); }
extern "C" __global__ void no_barrier(const int* in, int* out) { reverse<false>(in, out); }

extern "C" __global__ void outside(const int* in, int* out) { out[threadIdx.x + 1] = in[0]; }

extern "C" __global__ void lonely_barrier(const int* in, int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

extern "C" __global__ void half_a_warp(const int* in, int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], 0);
}

extern "C" __global__ void never_written(const int* in, int* out) {
  __shared__ int values[kThreads];
  if (threadIdx.x > 0) values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}
"""

RUN = """
import json, sys
from pathlib import Path
import numpy as np
from condinst_infer.cuda import driver as cuda
from condinst_infer.cuda.kernels import Launch
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from engines import emulator

folder, names = Path(sys.argv[1]), sys.argv[2:]
emulator.PTX, cuda.ptx = folder, lambda source: (folder / f"{source}.ptx").read_text()
driver = emulator.Emulator(emulator.build(folder, folder))
told = {}
for name in names:
    for schedule in emulator.SCHEDULES:
        driver.schedule(schedule)
        stream = Stream(cuda.Device())
        source, target = stream.array(np.arange(96, dtype=np.int32)), stream.empty((96,), np.int32)
        try:
            stream.launch(Launch("wrong", name, (2, 1, 1), 96, ()), [source], [target])
            error = ""
        except SessionError as failed:
            error = str(failed)
        result = stream.numpy(target).tolist()
        stream.close()
        told[f"{name} {schedule}"] = [result, error, driver.failure()]
print(json.dumps(told))
"""

Told = dict[str, tuple[list[int], str, str]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What happens to each kernel in each schedule: output, error, what the emulator says."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "wrong.cu").write_text(KERNELS)
    (folder / "wrong.ptx").write_text(ptx_from_source(folder / "wrong.cu"))
    names = re.findall(r"void (\w+)\(const int\* in, int\* out\) \{", KERNELS)
    command = [sys.executable, "-c", RUN, str(folder), *(n for n in names if n != "reverse")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_right_kernel_is_right_in_every_schedule(told: Told, schedule: str) -> None:
    assert told[f"reversed {schedule}"] == [[95 - i for i in range(96)], "", ""]


def test_a_missing_barrier_shows(told: Told) -> None:
    right = [95 - i for i in range(96)]
    wrong = [schedule for schedule in SCHEDULES if told[f"no_barrier {schedule}"][0] != right]
    assert len(wrong) >= 2


def test_a_write_outside_is_found(told: Told) -> None:
    assert all("outside" in told[f"outside {schedule}"][2] for schedule in SCHEDULES)


@pytest.mark.parametrize("name", ["lonely_barrier", "half_a_warp"])
def test_threads_that_wait_for_others_for_ever_are_found(told: Told, name: str) -> None:
    for schedule in SCHEDULES:
        _, error, failure = told[f"{name} {schedule}"]
        assert "(cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED)" in error and "never come" in failure


def test_shared_memory_that_nobody_wrote_differs_between_schedules(told: Told) -> None:
    assert len({told[f"never_written {schedule}"][0][0] for schedule in SCHEDULES}) == 3
