"""The shipped PTX in the interpreter: right at any address and in any order, without races."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pytest

from condinst_infer.cuda import kernels
from condinst_infer.processing.panoptic_merge import add_stuff, semantic_labels
from engines.compile_ptx import PTX
from engines.emulator.ptx import Module, Problem
from tests.engines import (
    test_class_nms,
    test_dynamic_mask_head,
    test_mask_nms,
    test_panoptic,
    test_paste,
    test_preprocess,
    test_select,
)
from tests.support.mask_reference import Masks, mask_scene
from tests.support.masks import logits_of, smooth_masks
from tests.support.nms_reference import random_scene
from tests.support.ptx_stream import PtxStream, shipped

SEEDS = (0, 1, 2)
TAKEN = 13  # the argument `taken` of owners_of_things
WIDE = {**test_dynamic_mask_head.PAPERS, "width": 16, "channels": 16}  # the kernels of size 16
# of outputs against the twin, on small or large inputs; takes a PtxStream in place of a Stream
Check = Callable[[Any, bool], None]


class Case(NamedTuple):
    """A check, and every kernel that it launches."""

    check: Check
    kernels: set[str]


def check_class_nms(stream: Any, large: bool) -> None:
    slots, runs, keep = (1025, 5, 100) if large else (65, 5, 20)  # large: a second chunk
    scene = random_scene(np.random.default_rng(6), batch=2, slots=slots, classes=2, crowd=15)
    scene = test_class_nms.in_runs(scene, runs)
    found = test_class_nms.kept(stream, scene, runs=runs, keep=keep)
    wanted = test_class_nms.expected(scene, keep=keep)
    assert 3 < wanted[1].max() and (wanted[1] < (scene.scores > 0).sum(1)).any()
    test_class_nms.assert_same(found, wanted)


def check_heads(head: dict[str, Any], dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        size, counts = ((9, 33), [2, 1]) if large else ((3, 33), [1])
        factors = (1, 2, 4) if large and head["width"] == 8 else (4,)  # 16: many instructions
        made = test_dynamic_mask_head.made_up_inputs(len(counts), 2, size, counts, dtype, head)
        for factor in factors:
            test_dynamic_mask_head.assert_as_torch(stream, made, stride=8, factor=factor, **head)
        made[1][0, 0] = np.nan  # every thread that reads one sets a flag of its block
        masks = test_dynamic_mask_head.masks_of(stream, made, stride=8, factor=factors[-1], **head)
        assert np.isnan(masks[0, 0]).all()

    return check


def repeated_masks() -> Masks:
    """Masks of one cell each; some equal the one before, which makes them wait for its round.

    The rounds of mask_nms are unrolled by four: such a pair begins in each of them, and in the rest
    after the last four. 527 cells are more than mask_ious holds at a time.
    """
    masks = np.zeros((1, 22, 17, 31), np.float32)
    cells = 24 * np.arange(22)
    for first in (0, 5, 10, 15, 20):
        cells[first + 1] = cells[first]
    masks.reshape(22, 527)[np.arange(22), cells] = 1
    scores = np.linspace(1, 0.5, 22, dtype=np.float32)[None]
    return Masks(masks, scores, np.zeros((1, 22), np.int32))


def check_mask_nms(dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        random = np.random.default_rng(17)
        scenes = [mask_scene(random, batch=2, candidates=17, size=(8, 8), dtype=dtype)]
        if large:
            repeated = repeated_masks()
            scenes.append(repeated._replace(masks=repeated.masks.astype(dtype)))
        for scene in scenes:
            for kind in kernels.MASK_NMS if large else ("greedy",):
                found = test_mask_nms.kept(stream, scene, kind, keep=20)
                wanted = test_mask_nms.expected(scene, kind, keep=20)
                for values, expected in zip(found, wanted, strict=True):
                    np.testing.assert_array_equal(values, expected)

    return check


def check_mask_extents(dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        size = (23, 33) if large else (5, 40)
        test_mask_nms.test_mask_extents_are_the_boxes_of_torch(stream, size, dtype)

    return check


def check_paste(dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        for case in test_paste.CASES[2:4] if large else test_paste.CASES[2:3]:
            test_paste.test_paste_equals_that_of_the_cpu(stream, case, dtype)

    return check


def check_things(stream: Any, large: bool) -> None:
    case = test_panoptic.CASES[5] if large else test_panoptic.CASES[2]
    masks = smooth_masks(np.random.default_rng(1), 6, *case.shape).astype(np.float16)
    masks[1::2, :, : case.shape[1] // 3] = 0  # crops begin within a word of the image
    boxes, scores = test_panoptic.slots_of(6, case)
    what = masks, boxes, scores, 6, case, 0.4
    owners = stream.numpy(test_panoptic.things_on(stream, *what))
    assert len(np.unique(owners)) > 2
    np.testing.assert_array_equal(owners, test_panoptic.expected_things(*what))


def check_stuff(dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        # weights of eighths: sums are exact
        size = (48, 80) if large else (20, 28)
        case = test_panoptic.Case((size[0] // 4, size[1] // 4), size, size)
        semantic = logits_of("ties", 5, case.shape).astype(dtype)
        things = np.where(np.random.default_rng(0).random(size) < 0.3, 4, 0).astype(np.uint16)
        labels = semantic_labels(semantic, net_size=size, image_size=size)
        limit = int(np.median(np.bincount(labels[things == 0])))
        on_device = stream.array(things)
        owners, _ = test_panoptic.stuff_on(stream, on_device, semantic, 9, case, limit)
        wanted = add_stuff(things, labels, 9, limit)
        assert {0, 4} < set(np.unique(wanted).tolist())
        np.testing.assert_array_equal(owners, wanted)

    return check


def check_preprocess(stream: Any, large: bool) -> None:
    size, net_size = test_preprocess.SIZES[0] if large else ((31, 45), (12, 33))
    frame = test_preprocess.photograph(size)
    found = test_preprocess.preprocessed(stream, frame, net_size, (64, 64), padding=5)
    height, width = net_size
    expected = test_preprocess.reference(frame, net_size)
    np.testing.assert_array_equal(found[:height, :width], expected)
    assert not found[height:].any() and not found[:, width:].any()


def check_select(dtype: type) -> Check:
    def check(stream: Any, large: bool) -> None:
        for case in test_select.CASES if large else test_select.CASES[1:2]:
            test_select.test_select_gathers_what_was_kept(stream, *case, True, dtype)

    return check


CASES = {
    "class_nms": Case(check_class_nms, {"class_nms"}),
    "things": Case(check_things, {"mask_boxes_f16", "paste_f16", "owners_of_things"}),
    "preprocess": Case(check_preprocess, {"preprocess"}),
}
for suffix, kind in (("f32", np.float32), ("f16", np.float16)):
    for width, parts in ((8, test_dynamic_mask_head.PAPERS), (16, WIDE)):
        name = f"dynamic_mask_head_{width}_{suffix}"
        CASES[name] = Case(check_heads(parts, kind), {name})
    chain = {f"mask_bits_{suffix}", "mask_ious", "mask_nms"}
    CASES[f"mask_nms_{suffix}"] = Case(check_mask_nms(kind), chain)
    CASES[f"mask_extents_{suffix}"] = Case(check_mask_extents(kind), {f"mask_extents_{suffix}"})
    chain = {f"mask_boxes_{suffix}", f"paste_{suffix}"}
    CASES[f"paste_{suffix}"] = Case(check_paste(kind), chain)
    chain = {f"add_stuff_{suffix}", "drop_small_stuff"}
    CASES[f"stuff_{suffix}"] = Case(check_stuff(kind), chain)
    CASES[f"select_{suffix}"] = Case(check_select(kind), {f"select_{suffix}"})


def harmless(kernel: str, problem: Problem) -> bool:
    """Whether a race is the one that is meant.

    Threads of owners_of_things set bits of words of `taken` with an atomic, while others may still
    read these words. Every pixel of an instance belongs to one thread: the bits that one looks at
    are not those that others set meanwhile.
    """
    both = problem.instruction + problem.detail
    return (
        kernel == "owners_of_things"
        and problem.kind in ("read after write, no barrier", "write after read, no barrier")
        and problem.detail.startswith(f"argument {TAKEN};")
        and "red.global.or.b32" in both
        and "ld.global.u32" in both
    )


def problems_of(stream: PtxStream) -> list[tuple[str, Problem]]:
    """Everything that is wrong."""
    return [found for found in stream.problems if not harmless(*found)]


def run(name: str, stream: PtxStream, *, large: bool) -> None:
    """The check of a case: outputs, every byte of them, and what the interpreter saw."""
    check, launched = CASES[name]
    try:
        check(stream, large)
    finally:  # what is wrong says more than an output that differs
        assert problems_of(stream) == []
    assert set(stream.kernels) == launched


def test_every_kernel_has_a_case() -> None:
    shipped_kernels = {name for path in PTX.glob("*.ptx") for name in shipped(path.stem).kernels}
    assert len(shipped_kernels) == 22
    assert set.union(*(case.kernels for case in CASES.values())) == shipped_kernels


@pytest.mark.parametrize("name", CASES)
def test_no_kernel_races_or_asks_for_aligned_tensors(name: str) -> None:
    run(name, PtxStream(mode="random", shift=1), large=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_no_kernel_races_whatever_the_order_of_threads(name: str, seed: int) -> None:
    run(name, PtxStream(mode="random", seed=seed), large=True)


def without_barriers(source: str, kernel: str) -> Iterator[Module]:
    """The module with each bar.sync of one of its kernels taken out in turn."""
    text = kernels.ptx(source)
    begin = text.index(f".entry {kernel}(")
    end = text.find(".entry ", begin + 1) if ".entry " in text[begin + 1 :] else len(text)
    for barrier in re.finditer(r"bar\.sync\s+0;", text[begin:end]):
        yield Module(text[: begin + barrier.start()] + text[begin + barrier.end() :])


BARRIERS = [
    (path.stem, kernel.name)
    for path in sorted(PTX.glob("*.ptx"))
    for kernel in shipped(path.stem).kernels.values()
    if any(instruction.operation == "bar" for instruction in kernel.instructions)
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "kernel"), BARRIERS)
def test_no_barrier_can_be_left_out(source: str, kernel: str) -> None:
    check = next(case.check for case in CASES.values() if kernel in case.kernels)
    modules = list(without_barriers(source, kernel))
    assert modules
    for i, module in enumerate(modules):
        tries = [(False, 0), *((True, seed) for seed in SEEDS)]
        found = (races(check, {source: module}, kernel, large, seed) for large, seed in tries)
        assert any(found), f"nothing shows that barrier {i} of {kernel} is missing"


def races(check: Check, modules: dict[str, Module], kernel: str, large: bool, seed: int) -> bool:
    """Whether the interpreter sees a race in a kernel of one of the `modules`."""
    stream = PtxStream(
        mode="random", seed=seed, module=lambda source: modules.get(source) or shipped(source)
    )
    with suppress(AssertionError):  # the outputs may be wrong too
        check(stream, large)
    kinds = {problem.kind for name, problem in problems_of(stream) if name == kernel}
    return any("no barrier" in kind or kind == "two lanes write one byte" for kind in kinds)
