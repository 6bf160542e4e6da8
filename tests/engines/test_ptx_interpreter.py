"""The interpreter of PTX: what it computes, and each thing that it has to see."""

from typing import Any

import numpy as np
import pytest

from engines.emulator.ptx import Buffer, Fault, LaunchResult, Module

THREADS = 64  # two warps
HEAD = """
.version 8.2
.target sm_75
.visible .entry test(.param .u64 test_param_0, .param .u64 test_param_1, .param .u32 test_param_2)
{
    .reg .pred %p<4>;
    .reg .b16 %rs<4>;
    .reg .f32 %f<8>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<16>;
    .shared .align 4 .b8 shared[256];
    ld.param.u64 %rd1, [test_param_0];
    cvta.to.global.u64 %rd1, %rd1;
    ld.param.u64 %rd2, [test_param_1];
    ld.param.u32 %r1, [test_param_2];
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd4, %rd1, %rd3;   // this thread's word of the first buffer
    add.s64 %rd5, %rd2, %rd3;   // and of the second
    mov.u32 %r3, shared;
    shl.b32 %r4, %r2, 2;
    add.s32 %r5, %r3, %r4;      // and of shared memory
"""


def launch(
    body: str, scalar: int = 0, blocks: int = 1, **settings: Any
) -> tuple[np.ndarray, LaunchResult]:
    """What a kernel leaves in the second buffer, 0 before; it reads 0, 1, 2, ... in the first."""
    first, second = np.arange(THREADS, dtype=np.uint32), np.zeros(THREADS, np.uint32)
    module = Module(f"{HEAD}{body}\nret;\n}}\n")
    result = module.launch("test", (blocks, 1, 1), THREADS, [first, second, scalar], **settings)
    return second, result


VALUES = [  # instruction on words %r6 (from the table), to %r7, and what comes out
    ("add.s32 %r7, %r6, -3", 2, -1),
    ("div.s32 %r7, %r6, 4", -7, -1),
    ("rem.s32 %r7, %r6, 4", -7, -3),
    ("div.u32 %r7, %r6, 3", 2**32 - 1, (2**32 - 1) // 3),
    ("mul.hi.s32 %r7, %r6, 1431655766", -9, -4),
    ("mad.lo.s32 %r7, %r6, 5, 1", 2**30, 2**30 + 1),
    ("shl.b32 %r7, %r6, 40", 1, 0),
    ("shr.u32 %r7, %r6, 32", 5, 0),
    ("shr.s32 %r7, %r6, 99", -5, -1),
    ("brev.b32 %r7, %r6", 6, 0x60000000),
    ("bfind.shiftamt.u32 %r7, %r6", 6, 29),
    ("bfind.shiftamt.u32 %r7, %r6", 0, -1),
    ("popc.b32 %r7, %r6", -2, 31),
    ("bfi.b32 %r7, %r6, 0, 4, 8", 0x1FF, 0xFF0),
    ("bfi.b32 %r7, %r6, 7, 0, 32", -9, -9),
    ("setp.ge.u32 %p1, %r6, 9; selp.b32 %r7, 4, 5, %p1", -1, 4),
    ("setp.lt.s32 %p1, %r6, 9; @!%p1 bra $L; mov.u32 %r7, 8; $L:", -1, 8),
    ("mul.wide.s32 %rd6, %r6, -3; shr.u64 %rd6, %rd6, 32; cvt.u32.u64 %r7, %rd6", 5, -1),
    ("mul.wide.s32 %rd6, %r6, 8; mov.b64 {%r8, %r7}, %rd6", 2**30, 2),
    ("cvt.u16.u32 %rs1, %r6; cvt.u32.u16 %r7, %rs1", 0x12345, 0x2345),
    ("cvt.rn.f32.s32 %f1, %r6; cvt.rzi.s32.f32 %r7, %f1", 2**24 + 1, 2**24),
    ("cvt.rn.f32.s32 %f1, %r6; mul.f32 %f1, %f1, 0f4F000000; cvt.rzi.s32.f32 %r7, %f1",
     3, 2**31 - 1),
    ("cvt.rn.f32.s32 %f1, %r6; div.rn.f32 %f1, %f1, 0f00000000; cvt.rzi.s32.f32 %r7, %f1", 0, 0),
    ("cvt.rn.f32.s32 %f1, %r6; div.approx.f32 %f1, %f1, 0f7F000000; mov.b32 %r7, %f1", 7, 0),
    ("cvt.rn.f32.s32 %f1, %r6; neg.f32 %f2, %f1; max.f32 %f1, %f1, 0f7FC00000; mov.b32 %r7, %f1",
     1, 0x3F800000),
    # 1 + 2^-30 is 1 rounded to nearest, and below it with the other sign
    ("cvt.rn.f32.s32 %f1, %r6; fma.rn.f32 %f2, %f1, 0fB0800000, 0f3F800000; mov.b32 %r7, %f2",
     1, 0x3F800000),
    ("cvt.rn.f32.s32 %f1, %r6; fma.rm.f32 %f2, %f1, 0fB0800000, 0f3F800000; mov.b32 %r7, %f2",
     1, 0x3F7FFFFF),
    ("cvt.rn.f32.s32 %f1, %r6; mul.f32 %f1, %f1, 0f3F000000; cvt.rn.f16.f32 %rs1, %f1; "
     "cvt.u32.u16 %r7, %rs1", 1, 0x3800),
    ("cvt.rn.f32.s32 %f1, %r6; setp.leu.f32 %p1, %f1, 0f7FC00000; selp.u32 %r7, 1, 0, %p1", 1, 1),
    ("cvt.rn.f32.s32 %f1, %r6; setp.le.f32 %p1, %f1, 0f7FC00000; selp.u32 %r7, 1, 0, %p1", 1, 0),
    ("cvt.rn.f32.s32 %f1, %r6; ex2.approx.ftz.f32 %f1, %f1; cvt.rzi.u32.f32 %r7, %f1", 10, 1024),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "value", "expected"), VALUES)
def test_arithmetic_is_that_of_ptx(instruction: str, value: int, expected: int) -> None:
    body = f"mov.u32 %r6, %r1; {instruction}; st.global.u32 [%rd5], %r7;"
    found, result = launch(body, value)
    assert set(found.view(np.int32).tolist()) == {expected}
    assert not result.problems and not result.unwritten


def test_warps_vote_and_shuffle() -> None:
    found, result = launch(
        "setp.lt.u32 %p1, %r2, 40; vote.sync.ballot.b32 %r6, %p1, -1;"
        "shfl.sync.bfly.b32 %r7|%p2, %r2, 16, 31, -1; add.s32 %r7, %r7, %r6;"
        "st.global.u32 [%rd5], %r7;",
        mode="random",
    )
    lanes = np.arange(THREADS, dtype=np.uint32)
    votes = np.where(lanes < 32, 2**32 - 1, 255).astype(np.uint32)
    np.testing.assert_array_equal(found, votes + (lanes ^ 16))
    assert not result.problems


def test_atomics_give_each_thread_another_number() -> None:
    # each thread writes where its number says: no two in one place
    body = (
        "atom.global.add.u32 %r7, [%rd2], 1; mul.wide.u32 %rd3, %r7, 4; add.s64 %rd5, %rd1, %rd3;"
    )
    found, result = launch(f"{body} st.global.u32 [%rd5], %r2;", mode="random", seed=3)
    assert found.tolist() == [THREADS, *[0] * (THREADS - 1)] and not result.problems
    found, result = launch("red.global.max.u32 [%rd2], %r2;", blocks=3, mode="random")
    assert found[0] == THREADS - 1 and not result.problems


STORE_ALL = "st.global.u32 [%rd5], %r2;"
PROBLEMS = [  # kernel, the kind of its only problem
    ("st.shared.u32 [%r5], %r2; ld.shared.u32 %r7, [shared];", "read after write, no barrier"),
    (
        "st.shared.u32 [%r5], %r2; bar.sync 0; ld.shared.u32 %r7, [shared+252]; "
        "setp.eq.s32 %p1, %r2, 63; @%p1 st.shared.u32 [%r5], %r7;",
        "write after read, no barrier",
    ),
    ("st.shared.u32 [shared], %r2;", "two lanes write one byte"),
    ("ld.shared.u32 %r7, [%r5];", "read of memory that nobody wrote"),
    ("st.global.u32 [%rd5+4], %r2;", "out of bounds"),
    ("add.s64 %rd5, %rd5, 2; ld.global.u32 %r7, [%rd5+-8];", "out of bounds"),
    ("ld.global.u16 %rs1, [%rd4+1];", "misaligned"),
    (
        "ld.global.nc.u32 %r7, [%rd5]; st.global.u32 [%rd5], %r7;",
        "write to a buffer that ld.global.nc reads",
    ),
    (
        "st.global.u32 [%rd5], %r2; ld.global.nc.u32 %r7, [%rd5];",
        "ld.global.nc of a buffer that is written",
    ),
    ("red.shared.add.u32 [%r5], 1;", "atomic on memory that nobody wrote"),
    ("red.global.add.u32 [%rd2], 1; ld.global.u32 %r7, [%rd2];", "read after write, no barrier"),
    (
        "setp.eq.s32 %p1, %r2, 9; @%p1 bra $L; bar.sync 0; $L:",
        "a barrier that not all threads reach",
    ),
    (
        "setp.eq.s32 %p1, %r2, 9; @%p1 bra $L; bar.sync 0; ret; $L: bar.sync 0;",
        "threads meet at different barriers",
    ),
    ("vote.sync.ballot.b32 %r7, %p1, 255;", "vote without the full mask"),
    ("shfl.sync.bfly.b32 %r7, %r2, 1, 15, -1;", "shfl with another clamp or mask"),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["lockstep", "random"])
@pytest.mark.parametrize(("body", "kind"), PROBLEMS)
def test_what_a_kernel_does_wrong_is_seen(body: str, kind: str, mode: str) -> None:
    kinds = {problem.kind for problem in launch(body, mode=mode)[1].problems}
    assert kind in kinds
    assert kinds <= {kind, "misaligned"} or kind.startswith("read after")


def test_blocks_that_write_what_others_read_race() -> None:
    body = "mov.u32 %r6, %ctaid.x; ld.global.u32 %r7, [%rd4]; st.global.u32 [%rd5], %r7;"
    module = Module(f"{HEAD}{body}\nret;\n}}\n")
    first, second = np.arange(THREADS, dtype=np.uint32), np.zeros(THREADS, np.uint32)
    result = module.launch("test", (2, 1, 1), THREADS, [first, second, 0])
    assert {problem.kind for problem in result.problems} == {"write after write, no barrier"}
    same = Module(f"{HEAD}ld.global.u32 %r7, [%rd4]; st.global.u32 [%rd4], %r7; ret;\n}}\n")
    result = same.launch("test", (2, 1, 1), THREADS, [first, second, 0])
    assert "write after read, no barrier" in {problem.kind for problem in result.problems}


def test_bytes_that_nobody_wrote_are_counted_and_kept_between_launches() -> None:
    half = f"setp.lt.u32 %p1, %r2, 32; @%p1 {STORE_ALL}"
    module = Module(f"{HEAD}{half}\nret;\n}}\n")
    first, second = Buffer((THREADS,), np.uint32), Buffer((THREADS,), np.uint32)
    result = module.launch("test", (1, 1, 1), THREADS, [first, second, 0])
    assert result.unwritten == {0: 4 * THREADS, 1: 4 * 32} and not result.problems
    copy = Module(f"{HEAD}ld.global.u32 %r7, [%rd5]; st.global.u32 [%rd4], %r7; ret;\n}}\n")
    result = copy.launch("test", (1, 1, 1), THREADS, [first, second, 0])
    (problem,) = result.problems
    assert problem.kind == "read of memory that nobody wrote" and problem.detail == "argument 1"


def test_buffers_begin_where_they_are_told_to() -> None:
    body = "ld.global.v2.u32 {%r6, %r7}, [%rd1]; " + STORE_ALL
    assert not launch(body)[1].problems
    (problem,) = launch(body, shift=1)[1].problems
    assert problem.kind == "misaligned" and problem.detail == "argument 0, 8 bytes"


def test_lanes_that_wait_for_others_of_their_warp_for_ever_end_the_launch() -> None:
    body = "setp.eq.s32 %p1, %r2, 9; @%p1 ret; vote.sync.ballot.b32 %r7, %p1, -1;"
    with pytest.raises(Fault, match="others of their warp that never come"):
        launch(body)


def test_instructions_are_counted_by_warp_in_lockstep_only() -> None:
    body = "setp.lt.u32 %p1, %r2, 32; @%p1 bra $L; not.b32 %r7, %r2; $L: " + STORE_ALL
    counts = launch(body)[1].counts
    assert (counts["not.b32"], counts["st.global.u32"]) == (1, 2)
    assert not launch(body, mode="random")[1].counts


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("tanh.approx.f32 %f1, %f1;", r"unknown instruction: tanh\.approx\.f32"),
        ("ld.const.u32 %r7, [%rd1];", r"unknown instruction: ld\.const"),
        ("setp.lo.u32 %p1, %r6, 9;", r"unknown instruction: setp\.lo"),
        ("@%p1 vote.sync.ballot.b32 %r7, %p1, -1;", "a warp primitive with a guard"),
        ("mov.u32 %r7, %clock;", "unknown register: %clock"),
        ("div.s32 %r7, %r2, 0;", "divided by zero"),
    ],
)
def test_what_is_not_known_is_an_error(body: str, words: str) -> None:
    with pytest.raises(Fault, match=words):
        launch(body)
    with pytest.raises(ValueError, match="lockstep, random"):
        launch("", mode="step")


def test_arguments_and_threads_are_those_of_the_kernel() -> None:
    module, array = Module(f"{HEAD}ret;\n}}\n"), np.zeros(4, np.uint32)
    for args, words in (
        ([array, 7, 0], "test_param_1 is .u64, not a 32-bit scalar"),
        ([array, array, array], "test_param_2 is .u32, not a pointer"),
    ):
        with pytest.raises(Fault, match=words):
            module.launch("test", (1, 1, 1), THREADS, args)
    narrow = Module(
        f"{HEAD}ret;\n}}\n".replace("u32 test_param_2)", "u32 test_param_2)\n.maxntid 32")
    )
    with pytest.raises(Fault, match=r"64 threads, but \.maxntid of test is 32"):
        narrow.launch("test", (1, 1, 1), THREADS, [array, array, 0])
