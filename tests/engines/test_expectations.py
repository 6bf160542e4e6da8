"""What is stored of the outputs of all kernels: the twins still say it, and it is small."""

import re
from typing import Any

import numpy as np
import pytest

from condinst_infer.cuda import kernels
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.profiling.gpu.cases import KernelCase
from condinst_infer.profiling.gpu.checks import _archive, difference, stored
from condinst_infer.profiling.gpu.groups import CHECKS, cases_of
from engines.compile_ptx import PTX
from engines.expectations import FILE, expectations

KERNELS = [kernel for kernel in CHECKS if kernel != "panoptic_merge"]  # that is of several


def unique(kernel: str, *, small: bool) -> list[KernelCase]:
    """The stored cases of a kernel, the two types of inputs once."""
    cases = {case.name: case for case in cases_of(kernel)[::-1] if case.stored}
    return [case for case in cases.values() if case.small == small]


def assert_fresh(kernel: str, case: KernelCase) -> None:
    """The twin's outputs are those stored, and the inputs are those of then."""
    inputs = case.inputs()
    wanted = stored(kernel, case.name, inputs)
    # two CPUs add in another order: a twin's own error is 1.4e-6 at most
    tolerance = case.limit / 4 if kernel == "dynamic_mask_head" else case.limit
    assert difference(case.expected(inputs), wanted) <= tolerance, case.name


@pytest.mark.parametrize("kernel", CHECKS)
def test_small_expectations_are_what_the_twins_say(kernel: str) -> None:
    assert unique(kernel, small=True)
    for case in unique(kernel, small=True):
        assert_fresh(kernel, case)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CHECKS)
def test_large_expectations_are_what_the_twins_say(kernel: str) -> None:
    for case in unique(kernel, small=False):
        assert_fresh(kernel, case)


def test_the_file_holds_what_is_compared_and_nothing_else() -> None:
    keys = {name.rpartition(": ")[0] for name in _archive()}
    assert keys == {
        f"{kernel}: {case.name}" for kernel in CHECKS for case in cases_of(kernel) if case.stored
    }
    assert FILE.stat().st_size < 1e6


def test_what_is_written_is_what_is_read() -> None:
    case = unique("select", small=True)[0]
    inputs = case.inputs()
    written = expectations("select", case)
    assert written.keys() == {
        name for name in _archive() if name.startswith(f"select: {case.name}: ")
    }
    read = stored("select", case.name, inputs)
    for name, values in case.expected(inputs).items():
        np.testing.assert_array_equal(read[name], values.ravel())


def test_other_inputs_are_not_compared() -> None:
    case = unique("select", small=True)[0]
    inputs = case.inputs()
    inputs["boxes"] = inputs["boxes"] + 1
    with pytest.raises(ValueError, match="makes other inputs"):
        stored("select", case.name, inputs)


class Recorder:
    """A stream that notes what is launched; every output is zero."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return DeviceArray(0, shape, np.dtype(dtype))

    def launch(self, launch: kernels.Launch, *_: Any) -> None:
        self.kernels.add(launch.kernel)

    def numpy(self, source: DeviceArray) -> np.ndarray:
        return np.zeros(source.shape, source.dtype)

    def nothing(self, *_: Any) -> None:
        pass

    upload = fill = synchronize = free = nothing


def test_every_entry_of_the_shipped_ptx_is_checked() -> None:
    recorder: Any = Recorder()
    for kernel in KERNELS:
        for case in cases_of(kernel):
            if case.small:
                case.run(recorder, case.inputs())
    texts = [path.read_text() for path in PTX.glob("*.ptx")]
    entries = {name for text in texts for name in re.findall(r"\.entry (\w+)\(", text)}
    assert recorder.kernels == entries and len(entries) == 22


@pytest.mark.parametrize(
    ("found", "wanted", "apart"),
    [
        ({"a": [1, 2, 3]}, {"a": [1, 5, 5]}, 2),
        ({"a": [0.5, 1]}, {"a": [0.25, 1]}, 0.25),
        ({"a": [1, 2, 3]}, {"a": [1, 5, 5], "a undecided": [1]}, 1),
        ({"a": [1.0], "b": [True]}, {"a": [np.nan], "b": [True]}, np.nan),
        ({"a": [np.nan], "b": [7]}, {"a": [1.0], "b": [8]}, np.nan),
        ({"a": [np.inf]}, {"a": [np.inf]}, np.nan),
    ],
)
def test_differences_count_whole_numbers_and_measure_others(
    found: dict, wanted: dict, apart: float
) -> None:
    arrays = ({name: np.array(v) for name, v in values.items()} for values in (found, wanted))
    np.testing.assert_equal(difference(*arrays), apart)
