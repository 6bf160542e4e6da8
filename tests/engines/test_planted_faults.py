"""Mistakes planted in the kernels: `condinst doctor --gpu-check` finds each, and nothing else.

Only what is stored is compared, as on a machine without PyTorch.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from condinst_infer.profiling.gpu.groups import CHECKS
from tests.support.emulated_driver import (
    Fault,
    driver_folder,
    environment,
    plant,
)

ROOT = Path(__file__).parents[2]
WORKER = "condinst_infer.profiling.gpu.worker"
SUPPRESSES = "return __fdiv_rn(overlap, both) > iou_threshold;"

FAULTS = [
    Fault(
        "NMS never suppresses",
        "class_nms",
        SUPPRESSES,
        SUPPRESSES.replace("threshold;", "threshold + 9.0f;"),
        {"class_nms"},
    ),
    Fault(
        "NMS suppresses all",
        "class_nms",
        SUPPRESSES,
        SUPPRESSES.replace("threshold;", "threshold - 9.0f;"),
        {"class_nms"},
    ),
    Fault(
        "NMS swaps ties",
        "class_nms",
        "lower ? other >= score : other > score",
        "lower ? other > score : other >= score",
        {"class_nms"},
    ),
    Fault(
        "NMS forgets what earlier chunks kept",
        "class_nms",
        "alive && i < found; ++i",
        "alive && i < 0; ++i",
        {"class_nms"},
    ),
    Fault(
        "half an odd stride is rounded up",
        "select",
        "level.z * row + level.z / 2",
        "level.z * row + (level.z + 1) / 2",
        {"select"},
    ),
    Fault(
        "the area of one warp is lost",
        "mask_nms",
        "for (int i = 1; i < kWarps; ++i) area = min(",
        "for (int i = 2; i < kWarps; ++i) area = min(",
        {"mask_bits"},
    ),
    Fault(
        "a candidate is its own rival",
        "mask_nms",
        "const bool rivals = i < j &&",
        "const bool rivals = i <= j &&",
        {"mask_ious"},
    ),
    Fault(
        "matrix NMS multiplies what it should compare",
        "mask_nms",
        "decay = fminf(decay, __fdiv_rn(left, shared[i]))",
        "decay = fminf(decay, decay * __fdiv_rn(left, shared[i]))",
        {"mask_nms"},
    ),
    Fault(
        "boxes of masks end a cell too early",
        "mask_nms",
        "box[2] = min(box[2], -column - 1)",
        "box[2] = min(box[2], -column)",
        {"mask_extents"},
    ),
    Fault(
        "the last column of the features is not read",
        "dynamic_mask_head",
        "cell % columns, 0), w - 1)",
        "cell % columns, 0), w - 2)",
        {"dynamic_mask_head"},
    ),
    Fault(
        "halves are rounded down",
        "preprocess",
        "floorf(__fdiv_rn(sum, total) + 0.5f)",
        "floorf(__fdiv_rn(sum, total) + 0.4999f)",
        {"preprocess"},
    ),
    Fault(
        "a crop without room has a place",
        "paste",
        "end <= min(static_cast<unsigned>(capacity), kMostWords)",
        "end <= kMostWords",
        {"mask_boxes"},
    ),
    Fault(
        "a pixel reads one row of cells",
        "paste",
        "const T* lower = mask + static_cast<long long>(down.high) * w;",
        "const T* lower = mask + static_cast<long long>(down.low) * w;",
        {"paste", "panoptic_merge"},
    ),
    Fault(
        "an instance may lose all",
        "panoptic",
        "sums[turn][1] * kMillion <= static_cast<long long>(share) * sums[turn][0]",
        "sums[turn][1] * kMillion <= kMillion * sums[turn][0] + share",
        {"owners_of_things"},
    ),
    Fault(
        "ties go to the higher class",
        "panoptic",
        "c == 0 || value > largest",
        "c == 0 || value >= largest",
        {"add_stuff"},
    ),
    Fault(
        "stuff of just enough pixels is dropped",
        "panoptic",
        "areas[stuff] < limit",
        "areas[stuff] <= limit",
        {"drop_small_stuff"},
    ),
]


def failing(folder: Path, *groups: str) -> set[str]:
    """The groups that a driver fails, all run in one process."""
    done = subprocess.run(
        [sys.executable, "-m", WORKER, *groups, "--small", "--stored"],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records and records[-1] == {"done": True}, done.stderr
    assert not [record for record in records if "error" in record]
    checks = [record["check"] for record in records if "check" in record]
    assert {check["kernel"] for check in checks} == set(groups if groups != ("checks",) else CHECKS)
    assert done.returncode == int(not all(check["ok"] for check in checks))
    return {check["kernel"] for check in checks if not check["ok"]}


def test_every_kernel_has_a_fault() -> None:
    assert set().union(*(fault.found_by for fault in FAULTS)) == set(CHECKS)


def test_nms_that_never_suppresses_is_found(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    right = driver_folder(tmp_path_factory, "class_nms")
    plant(FAULTS[0], right, tmp_path)
    assert failing(tmp_path, "class_nms") == {"class_nms"}


@pytest.mark.slow
def test_the_right_kernels_fail_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert failing(driver_folder(tmp_path_factory), "checks") == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_the_checks_that_should(
    fault: Fault, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plant(fault, driver_folder(tmp_path_factory), tmp_path)
    assert failing(tmp_path, "checks") == fault.found_by
