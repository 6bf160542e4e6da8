"""Groups of checks and times in the order in which they run: a name and a function of each.

The functions are named, not imported: each is called in a process of its own, and some need torch.
"""

from importlib import import_module
from typing import Any

from condinst_infer.profiling.gpu.cases import KernelCase

_ROOM = "condinst_infer.profiling.gpu"

# a kernel, or several as they are run: () -> its cases
CHECKS = {
    "class_nms": f"{_ROOM}.candidate_cases:class_nms_cases",
    "select": f"{_ROOM}.candidate_cases:select_cases",
    "mask_bits": f"{_ROOM}.mask_nms_cases:mask_bits_cases",
    "mask_ious": f"{_ROOM}.mask_nms_cases:mask_ious_cases",
    "mask_nms": f"{_ROOM}.mask_nms_cases:mask_nms_cases",
    "mask_extents": f"{_ROOM}.mask_nms_cases:mask_extents_cases",
    "dynamic_mask_head": f"{_ROOM}.mask_head_cases:dynamic_mask_head_cases",
    "preprocess": f"{_ROOM}.image_cases:preprocess_cases",
    "mask_boxes": f"{_ROOM}.image_cases:mask_boxes_cases",
    "paste": f"{_ROOM}.image_cases:paste_cases",
    "owners_of_things": f"{_ROOM}.panoptic_cases:owners_of_things_cases",
    "add_stuff": f"{_ROOM}.panoptic_cases:add_stuff_cases",
    "drop_small_stuff": f"{_ROOM}.panoptic_cases:drop_small_stuff_cases",
    "panoptic_merge": f"{_ROOM}.panoptic_checks:panoptic_merge_cases",
}

# (device, small) -> rows, or checks
TIMES = {
    "class_nms times": f"{_ROOM}.times:nms_times",
    "dynamic_mask_head times": f"{_ROOM}.times:mask_head_times",
    "preprocess times": f"{_ROOM}.times:preprocess_times",
    "paste times": f"{_ROOM}.times:paste_times",
    "mask_nms times": f"{_ROOM}.times:mask_nms_times",
    "select times": f"{_ROOM}.times:select_times",
    "panoptic_merge times": f"{_ROOM}.times:panoptic_times",
}


def groups_of(kernel: str | None = None) -> dict[str, str]:
    """The groups of one kernel, or all of them, checks first."""
    every = CHECKS | TIMES
    names = every if kernel is None else (kernel, f"{kernel} times")
    return {name: every[name] for name in names if name in every}


def cases_of(kernel: str) -> list[KernelCase]:
    """The cases of one entry of CHECKS."""
    return imported(CHECKS[kernel])()


def imported(target: str) -> Any:
    """The function that "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
