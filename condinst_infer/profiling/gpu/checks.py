"""Checks of a kernel's cases against what is stored in the package and against their twins."""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module, resources
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import CondInstError
from condinst_infer.profiling.gpu.cases import UNDECIDED, Arrays, KernelCase
from condinst_infer.profiling.gpu.seeded import Seeded

STORED = "gpu_expectations.npz"  # in condinst_infer/data; python -m engines.expectations
_SAMPLE = 4096  # values that are stored of a larger output


class Check(NamedTuple):
    """Difference of a kernel's outputs from what was expected, and the allowed difference."""

    kernel: str
    case: str
    difference: float
    limit: float
    against: str = "torch"  # or "numpy", or "stored"
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit  # also refuses NaN


def checks_of(
    kernel: str, cases: Sequence[KernelCase], device: Device, small: bool, twins: bool = True
) -> Iterator[Check | dict[str, Any]]:
    """Check every case against what is stored, then against its twin if that is installed.

    A case that can't be run gives a dictionary with its error, and the next one is tried, unless
    the device is lost.

    Args:
        small: leaves the large cases out.
        twins: False leaves the twins out, which take most of the time.
    """
    stream = Stream(device)
    for case in cases:
        if small and not case.small:
            continue
        try:
            yield from _case_checks(kernel, case, stream, twins)
        except Exception as error:
            yield {"kernel": kernel, "case": case.title, "error": sentence(error)}
            stream.synchronize()  # raises where nothing works any more
    stream.close()


def sentence(error: BaseException) -> str:
    """The words of an error in one line; with its type where that is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CondInstError) else f"{type(error).__name__}: {text}"


def _case_checks(kernel: str, case: KernelCase, stream: Stream, twins: bool) -> Iterator[Check]:
    begin = time.perf_counter()
    inputs = case.inputs()
    found = case.run(stream, inputs)
    if case.stored:
        apart = difference(found, stored(kernel, case.name, inputs))
        taken = time.perf_counter() - begin
        yield Check(kernel, case.title, apart, case.limit, "stored", taken)
        begin = time.perf_counter()
    if twins and _has_twin(case):
        apart = difference(found, case.expected(inputs))
        taken = time.perf_counter() - begin
        yield Check(kernel, case.title, apart, case.limit, case.twin, taken)


def _has_twin(case: KernelCase) -> bool:
    """True if the twin can be run here in a short time."""
    torch = None if case.twin == "numpy" else _torch()
    if case.gpu_twin:
        return torch is not None and torch.cuda.is_available()
    return case.twin == "numpy" or torch is not None


@cache
def _torch() -> Any:
    """The module, or None if it can't be imported, for whatever reason."""
    try:
        return import_module("torch")
    except Exception:
        return None


def difference(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The greatest difference of a float, or the number of wrong whole numbers, NaN if any is.

    Of an output larger than what is stored, those values count that `sampled` took.
    """
    apart = [0.0]
    for name, values in wanted.items():
        if name.endswith(UNDECIDED):
            continue
        got = found[name]
        got = sampled(got) if got.size != values.size else got.ravel()
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):  # infinity less infinity
                distance = np.abs(got.astype(np.float64) - values.ravel())
            apart.append(float(distance.max(initial=0)))
        else:
            wrong = got != values.ravel()
            wrong[wanted.get(f"{name}{UNDECIDED}", [])] = False
            apart.append(float(wrong.sum()))
    return float(np.max(apart))


def sampled(values: np.ndarray) -> np.ndarray:
    """As many values as are stored of a large output, always of the same places."""
    if values.size <= _SAMPLE or values.dtype.kind != "f":
        return values.ravel()
    return values.ravel()[Seeded(0).integers(0, values.size, (_SAMPLE,))]


def stored(kernel: str, name: str, inputs: Arrays) -> Arrays:
    """The expectations of a case that ship in the package.

    Raises:
        ValueError: they were made of other inputs.
    """
    key, archive = f"{kernel}: {name}: ", _archive()
    if int(archive[f"{key}inputs"]) != checksum(inputs):
        raise ValueError(f"numpy {np.__version__} makes other inputs than those of {STORED}")
    names = [path for path in archive if path.startswith(key) and path != f"{key}inputs"]
    return {path.removeprefix(key): archive[path] for path in names}


def checksum(inputs: Arrays) -> int:
    """CRC of the inputs of a case."""
    crc = 0
    for name, values in inputs.items():
        crc = zlib.crc32(np.ascontiguousarray(values).tobytes(), zlib.crc32(name.encode(), crc))
    return crc


@cache
def _archive() -> Arrays:
    path = resources.files("condinst_infer").joinpath("data", STORED)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return dict(archive)
