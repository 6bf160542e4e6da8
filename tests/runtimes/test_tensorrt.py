"""The TensorRT session: names, addresses, shapes, memory and threads, without TensorRT or a GPU.

The engine is the stand-in's (tests/support/fake_tensorrt), the device is the CUDA emulator's.
"""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import condinst_infer as ci
from condinst_infer.contract.tensors import output_shapes
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import CondInstError, MissingExtraError, ModelFileError, SessionError
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.tensorrt import TrtSession
from condinst_infer.trt.sidecar import read, sidecar_path
from condinst_infer.verification.compare import compare
from engines.emulator import Emulator
from tests.support.fake_tensorrt import fake_tensorrt
from tests.support.fake_tensorrt.device import Replayed, built, install
from tests.support.fake_tensorrt.types import state

Feeds = dict[str, np.ndarray]


@pytest.fixture
def trt(cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in as the installed tensorrt; fails if memory is left or written outside."""
    module = install(monkeypatch)
    before = cuda_emulator.allocations()
    yield module
    assert cuda_emulator.failure() == "" and cuda_emulator.allocations() == before


@pytest.fixture
def engine(trt: ModuleType, nano_onnx: Path, tmp_path: Path) -> Path:
    """The nano model for up to three images, 64x64 to 192x192."""
    return built(nano_onnx, tmp_path, min_shape=(1, 64, 64), max_shape=(3, 192, 192))


@pytest.fixture
def session(engine: Path) -> Iterator[TrtSession]:
    session = TrtSession(engine)
    yield session
    session.close()


def feeds(n: int = 1, h: int = 64, w: int = 96, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, h // 16, w // 16, 3), np.uint8)
    sizes = np.array([[h - i, w - 2 * i] for i in range(n)], np.int32)
    return {"images": coarse.repeat(16, 1).repeat(16, 2), "image_sizes": sizes}


def unresized(h: int, w: int) -> np.ndarray:
    """A picture of a size that the nano network takes: resizing differs by a grey level."""
    coarse = np.random.default_rng(0).integers(0, 256, (h // 16, w // 16, 3), np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)


def assert_same(found: Feeds, expected: Feeds) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_outputs_are_those_of_the_file_for_every_shape(
    session: TrtSession, nano_onnx: Path
) -> None:
    expected = OrtSession(nano_onnx, threads=1)
    assert session.inputs == expected.inputs and session.metadata == expected.metadata
    for turn in range(3):
        for n, h, w in ((1, 64, 96), (3, 64, 96), (1, 192, 64), (1, 64, 64), (2, 96, 160)):
            given = feeds(n, h, w, seed=turn)
            assert_same(session.run(given), expected.run(given))


def test_a_static_engine_runs(trt: ModuleType, nano_static_onnx: Path, tmp_path: Path) -> None:
    session = TrtSession(built(nano_static_onnx, tmp_path))
    given = feeds(2, 128, 160)
    assert_same(session.run(given), OrtSession(nano_static_onnx, threads=1).run(given))
    with pytest.raises(SessionError, match=r"\[1, 128, 160, 3\], the model needs .*\[2, 128"):
        session.run(feeds(1, 128, 160))
    session.close()


def test_after_warm_up_nothing_is_allocated_and_graphs_do_the_work(
    session: TrtSession, nano_onnx: Path, cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(1, 64, 96), (2, 64, 96)]
    first = [session.run(feeds(*shape)) for shape in shapes]
    assert first[0].keys() == session.outputs.keys() and Replayed.launches == 0
    allocations, contexts = cuda_emulator.allocations(), len(state.contexts)
    for name in ("empty", "allocate_pinned", "graph", "__init__"):
        monkeypatch.setattr(Stream, name, None)
    expected = OrtSession(nano_onnx, threads=1)
    for seed in range(1, 4):
        for shape in shapes:
            assert_same(
                session.run(feeds(*shape, seed=seed)), expected.run(feeds(*shape, seed=seed))
            )
    assert Replayed.launches == 6
    assert (cuda_emulator.allocations(), len(state.contexts)) == (allocations, contexts)
    assert_same(session.run(feeds()), first[0])  # arrays of earlier calls are nobody else's


def test_few_idle_shapes_are_kept_and_contexts_are_used_again(
    session: TrtSession, cuda_emulator: Emulator
) -> None:
    before = cuda_emulator.allocations()
    session.run(feeds())
    per_shape = cuda_emulator.allocations() - before
    for width in (64, 96, 128, 160, 192) * 2:
        session.run(feeds(1, 64, width))
    assert cuda_emulator.allocations() - before == 4 * per_shape
    assert len(state.contexts) == 5


def test_threads_have_contexts_of_their_own(session: TrtSession, nano_onnx: Path) -> None:
    expected = OrtSession(nano_onnx, threads=1)
    given = [feeds(1 + i % 2, 64, 96, seed=i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(session.run, given))
    for one, other in zip(found, map(expected.run, given), strict=True):
        assert_same(one, other)
    assert 2 <= len(state.contexts) <= 8
    addresses = [tuple(context._addresses.values()) for context in state.contexts]
    assert len(set(sum(addresses, ()))) == len(sum(addresses, ()))


@pytest.mark.parametrize("shape", [(1, 32, 64), (4, 64, 64), (1, 64, 224)])
def test_a_shape_outside_the_profile_is_refused_with_the_range(
    session: TrtSession, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    words = "x".join(map(str, shape)) + r" .*this engine takes 1x64x64 to 3x192x192"
    with monkeypatch.context() as patch:
        for name in ("empty", "allocate_pinned"):  # before any memory is taken for it
            patch.setattr(Stream, name, None)
        with pytest.raises(SessionError, match=words):
            session.run(feeds(*shape))
    session.run(feeds())


def test_wrong_feeds_are_refused(session: TrtSession) -> None:
    given = feeds(2)
    for wrong, words in (
        ({"images": given["images"]}, "the model needs"),
        ({**given, "images": given["images"].astype(np.float32)}, "is float32"),
        ({**given, "image_sizes": given["image_sizes"][:1]}, "N = 2"),
    ):
        with pytest.raises(SessionError, match=words):
            session.run(wrong)


def test_a_closed_session_says_so(engine: Path, cuda_emulator: Emulator) -> None:
    session = TrtSession(engine)
    context = session.context()
    session.run(feeds())
    session.close()
    session.close()
    session.release(context)
    for call in (lambda: session.run(feeds()), session.context):
        with pytest.raises(SessionError, match=r"dynamic\.engine is closed"):
            call()


def test_a_context_runs_from_device_memory_to_device_memory(
    session: TrtSession, nano_onnx: Path
) -> None:
    assert session.capturable
    stream = Stream(session.device)
    context = session.context()
    assert session.context() is not context
    expected = OrtSession(nano_onnx, threads=1)
    arrays, outputs = {}, {}
    for seed, (n, h, w) in enumerate([(1, 64, 96), (1, 64, 96), (2, 96, 64)]):
        given = feeds(n, h, w, seed)
        shapes = output_shapes(session.metadata, n, (h, w))
        arrays = {name: stream.array(value) for name, value in given.items()}
        outputs = {
            name: stream.empty(shapes[name], spec.dtype) for name, spec in session.outputs.items()
        }
        context.enqueue(arrays, outputs, stream)
        assert_same({name: stream.numpy(a) for name, a in outputs.items()}, expected.run(given))
        smaller = {**outputs, "scores": stream.empty((n, 3), np.float32)}
        with pytest.raises(SessionError, match=r"'scores': \(\d, 3\).* needed are"):
            context.enqueue(arrays, smaller, stream)
    arrays["images"] = stream.empty((9, 64, 64, 3), np.uint8)
    with pytest.raises(SessionError, match="this engine takes 1x64x64 to 3x192x192"):
        context.enqueue(arrays, outputs, stream)
    session.release(context)
    assert session.context() is context and session.context() is not context
    stream.close()


@pytest.mark.parametrize("file", ["nano_onnx", "detector_onnx"])
def test_a_pipeline_on_an_engine_gives_what_it_gives_on_the_file(
    file: str, trt: ModuleType, nano_onnx: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rng = np.random.default_rng(0)
    images = [  # of the size the network wants: no resizing, which differs by a grey level
        rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(16, 0).repeat(16, 1) for _ in range(3)
    ]
    path = built(request.getfixturevalue(file), tmp_path)
    with ci.load(path) as pipeline, ci.load(nano_onnx) as expected:
        for image in images:
            one, other = pipeline(image), expected(image)
            assert len(one) == len(other) > 3 and (one.labels == other.labels).all()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)  # pixels
            assert (one.masks != other.masks).mean() < 1e-4  # p near 0.5 may go either way
    assert Replayed.launches == 1


def test_an_engine_is_compared_by_what_it_puts_out(
    trt: ModuleType, nano_onnx: Path, nano_checkpoint: Path, tmp_path: Path
) -> None:
    engine = built(nano_onnx, tmp_path, min_shape=(1, 64, 64), max_shape=(2, 256, 256))
    for other in (nano_onnx, nano_checkpoint):
        report = compare(engine, other)
        assert report.ok and report.detections[0] == report.detections[1] > 0


def test_a_graph_with_a_loop_is_not_captured(
    trt: ModuleType, nano_onnx: Path, tmp_path: Path
) -> None:
    session = TrtSession(built(nano_onnx, tmp_path, plugin=False))
    assert not session.capturable
    for seed in range(3):
        session.run(feeds(seed=seed))
    assert Replayed.launches == 0
    session.close()


def test_a_failing_run_is_one_sentence_and_leaves_nothing(
    session: TrtSession, monkeypatch: pytest.MonkeyPatch, cuda_emulator: Emulator
) -> None:
    before = cuda_emulator.allocations()
    with monkeypatch.context() as patch:
        patch.setattr(
            "tests.support.fake_tensorrt.runtime.IExecutionContext.execute_async_v3",
            lambda *a: False,
        )
        with pytest.raises(SessionError, match="execute_async_v3 failed") as caught:
            session.run(feeds())
    assert "\n" not in str(caught.value) and cuda_emulator.allocations() == before
    session.run(feeds())


def test_what_tensorrt_refuses_is_one_sentence(engine: Path) -> None:
    found, data = read(engine)
    data = b"JUNK" + data[4:]
    engine.write_bytes(data)
    changed = replace(found, engine_sha256=hashlib.sha256(data).hexdigest())
    sidecar_path(engine).write_text(changed.to_json())
    with pytest.raises(SessionError, match="can't load .*: magic tag does not match"):
        TrtSession(engine)


def test_what_is_missing_is_named(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(index: int) -> Device:
        raise SessionError("there is no NVIDIA driver here.")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'condinst-infer\[tensorrt\]'"):
            TrtSession(engine)
    monkeypatch.setattr("condinst_infer.runtimes.tensorrt.Device", no_gpu)
    with pytest.raises(CondInstError, match="no NVIDIA driver"):
        TrtSession(engine)
    with pytest.raises(ModelFileError, match="does not exist"):  # whatever is missing besides
        TrtSession(engine.with_name("none.engine"))


def test_tensorrt_rtx_makes_its_graphs_itself(
    trt: ModuleType, engine: Path, nano_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.__name__ = "tensorrt_rtx"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    found, _ = read(engine)
    sidecar_path(engine).write_text(replace(found, runtime="tensorrt_rtx").to_json())
    session = TrtSession(engine)
    assert not session.capturable
    for seed in range(2):
        given = feeds(seed=seed)
        assert_same(session.run(given), OrtSession(nano_onnx, threads=1).run(given))
    settings = state.contexts[-1]._settings
    assert settings.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    session.close()


def test_a_run_that_cannot_be_captured_keeps_its_result(
    trt: ModuleType, session: TrtSession, nano_onnx: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For every shape and every call; it is said once."""
    state.uncapturable = "a layer synchronises"
    expected = OrtSession(nano_onnx, threads=1)
    with caplog.at_level("WARNING"):
        for turn in range(3):
            for shape in ((1, 64, 96), (2, 64, 96)):
                given = feeds(*shape, seed=turn)
                assert_same(session.run(given), expected.run(given))
    assert Replayed.launches == 0 and len(state.contexts) == 2
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "without CUDA graphs" in told[0].getMessage()
    assert "a layer synchronises" in told[0].getMessage()


def test_a_pipeline_keeps_its_result_when_capture_is_refused(
    trt: ModuleType, nano_onnx: Path, tmp_path: Path
) -> None:
    state.uncapturable = "a layer synchronises"
    image = unresized(128, 128)
    with ci.load(built(nano_onnx, tmp_path)) as ours, ci.load(nano_onnx) as theirs:
        expected = theirs(image)
        for _ in range(4):
            assert np.array_equal(ours(image).labels, expected.labels)
    assert Replayed.launches == 0


def test_scratch_memory_is_as_large_as_the_shapes_in_use_need(
    session: TrtSession, nano_onnx: Path
) -> None:
    """One piece for all that runs on a stream; by itself TensorRT takes the largest for each."""
    stream = Stream(session.device)
    expected = OrtSession(nano_onnx, threads=1)
    arrays: list[tuple[Feeds, dict[str, DeviceArray], dict[str, DeviceArray], Any]] = []
    sizes = []
    for shape in ((1, 64, 64), (1, 64, 96), (3, 192, 192), (1, 64, 64)):
        given = feeds(*shape)
        ins = {name: stream.array(value) for name, value in given.items()}
        needed = output_shapes(session.metadata, shape[0], shape[1:])
        outs = {
            name: stream.empty(needed[name], spec.dtype) for name, spec in session.outputs.items()
        }
        arrays.append((given, ins, outs, session.context()))
        arrays[-1][-1].enqueue(ins, outs, stream)
        sizes.append(stream.workspace.reserve(0).nbytes)
    assert sizes == [2 * 64 * 64 * 3, 2 * 64 * 96 * 3, 2 * 3 * 192 * 192 * 3] + sizes[2:3]
    for given, ins, outs, context in arrays:  # the memory of the first is no more
        context.enqueue(ins, outs, stream)
        for name, value in expected.run(given).items():
            assert np.array_equal(stream.numpy(outs[name]), value)
        session.release(context)
    stream.close()


def test_a_version_that_wants_memory_for_the_largest_shapes_gets_it(
    session: TrtSession, nano_onnx: Path
) -> None:
    state.largest_scratch = True
    given = feeds()
    for _ in range(2):
        assert_same(session.run(given), OrtSession(nano_onnx, threads=1).run(given))
    assert state.contexts[-1]._memory[1] == 2 * 3 * 192 * 192 * 3


def test_a_larger_canvas_makes_graphs_of_the_smaller_ones_anew(
    trt: ModuleType, nano_onnx: Path, tmp_path: Path
) -> None:
    """Their graphs hold the address of scratch memory that has moved."""
    small, large = unresized(128, 128), unresized(128, 192)
    with ci.load(built(nano_onnx, tmp_path)) as ours, ci.load(nano_onnx) as theirs:
        expected = {id(image): theirs(image) for image in (small, large)}
        for image in (small, small, small, large, small, small, large, small, small):
            assert np.array_equal(ours(image).labels, expected[id(image)].labels)
    assert Replayed.launches == 3  # the third small one, then both again after two plain runs


def test_no_memory_for_a_context_or_a_run_leaves_nothing(
    session: TrtSession, nano_onnx: Path, cuda_emulator: Emulator
) -> None:
    """Every allocation of the first run in turn."""
    expected = OrtSession(nano_onnx, threads=1).run(feeds())
    before, number = cuda_emulator.live() | {"memory": cuda_emulator.allocations()}, 0
    while True:
        number += 1
        cuda_emulator.fault(f"cuMemAlloc:{number}:2")
        try:
            assert_same(session.run(feeds()), expected)
        except SessionError as error:
            assert "no memory left" in str(error)
            assert cuda_emulator.live() | {"memory": cuda_emulator.allocations()} == before
        if not cuda_emulator.fired():
            break
    assert number > 8
    cuda_emulator.fault("")


def test_a_session_is_closed_on_any_thread(engine: Path) -> None:
    session = TrtSession(engine)
    session.run(feeds())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.close).result()
    assert "closed" in repr(session)


def test_the_stand_in_has_the_names_of_the_installed_library() -> None:
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    for name, ours in vars(fake_tensorrt()).items():
        if name.startswith("_") or not isinstance(ours, type):
            continue
        theirs = {*dir(getattr(real, name)), *dir(object)}
        members = {n for n in vars(ours) if not n.startswith("_")}
        assert members <= theirs, name
