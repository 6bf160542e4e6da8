"""Limits of a card, from what its driver tells, and the share of them that a kernel reaches.

The roofline of a launch is the time that the card needs at least: for the bytes at its memory
bandwidth or for the operations at its float32 peak, whichever is longer.
"""

from typing import Any, NamedTuple

from condinst_infer.cuda.driver import Device
from condinst_infer.profiling.gpu.kernel_costs import KernelCost

_CLOCK_KHZ, _MULTIPROCESSORS = 13, 16  # numbers of CUdevice_attribute
_MEMORY_CLOCK_KHZ, _BUS_BITS = 36, 37
_TRANSFERS = 2  # in a cycle of the memory clock that the driver tells, for HBM and GDDR alike

# float32 lanes of a multiprocessor by compute capability, from the table "Arithmetic
# Instructions" of NVIDIA's CUDA C++ Programming Guide and from cuda-samples' helper_cuda.h
_LANES = {
    (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64, (8, 6): 128, (8, 7): 128, (8, 9): 128,
    (9, 0): 128, (10, 0): 128, (10, 3): 128, (11, 0): 128, (12, 0): 128, (12, 1): 128,
}  # fmt: skip


class CardLimits(NamedTuple):
    """Peak memory bandwidth and float32 rate of a card; None where the driver does not tell."""

    bytes_per_s: float | None
    operations_per_s: float | None  # float32, two for a multiply-add


def card_limits(device: Device) -> CardLimits:
    """Memory bandwidth and float32 peak of `device`."""
    memory_khz, bus_bits = _attribute(device, _MEMORY_CLOCK_KHZ), _attribute(device, _BUS_BITS)
    clock_khz, processors = _attribute(device, _CLOCK_KHZ), _attribute(device, _MULTIPROCESSORS)
    lanes = _LANES.get(device.compute_capability, 0)
    bandwidth = _TRANSFERS * memory_khz * 1e3 * bus_bits / 8
    peak = 2.0 * clock_khz * 1e3 * processors * lanes
    return CardLimits(bandwidth or None, peak or None)


def roofline(cost: KernelCost, milliseconds: float, limits: CardLimits) -> dict[str, Any] | None:
    """The least time in microseconds, what sets it, and its share of `milliseconds`.

    None where a limit of the card is unknown.
    """
    if limits.bytes_per_s is None or limits.operations_per_s is None:
        return None
    bounds = {
        "memory": cost.bytes / limits.bytes_per_s,
        "compute": cost.operations / limits.operations_per_s,
    }
    bound = max(bounds, key=lambda name: bounds[name])
    return {
        "bound": bound,
        "least_us": bounds[bound] * 1e6,
        "share": bounds[bound] * 1e3 / milliseconds,
        "card_gb_per_s": limits.bytes_per_s / 1e9,
        "card_gflop_per_s": limits.operations_per_s / 1e9,
    }


def _attribute(device: Device, number: int) -> int:
    """An attribute of the device by its number; 0 where the driver has none."""
    return device.call(
        "cuDeviceGetAttribute", device._driver.CUdevice_attribute(number), device._handle
    )
