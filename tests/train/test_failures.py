"""Whatever ends a training early: the last whole iteration is saved, and the text tells it."""

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from condinst_infer.errors import CheckpointError, CondInstError, InputError, TrainingError
from condinst_infer.system.signals import Interrupted
from condinst_infer.train import trainer as trainer_module
from condinst_infer.train.failures import error_with_advice, machine_sentence
from condinst_infer.train.resume import last_state
from condinst_infer.train.run import DataPaths, train
from tests.support.small_training import losses_of, small_config, small_data, small_settings

AT = 4  # the iteration that fails
SETTINGS: dict[str, Any] = {"iterations": 6, "save_every": 100}  # so that only a failure saves
WEIGHTS = "model.safetensors"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return small_data(tmp_path_factory.mktemp("failures"))


@pytest.fixture(scope="module")
def whole(data: DataPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(small_config(), small_settings(**SETTINGS), data, run)
    return run


def fail_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException, call: int
) -> None:
    """Let call number `call` of a function, and all later ones, end with `error` after its work."""
    wrapped, count = getattr(owner, name), 0

    def function(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        result = wrapped(*args, **options)
        if count >= call:
            raise error
        return result

    patch.setattr(owner, name, function)


def fill_disk_under_log(patch: pytest.MonkeyPatch, call: int) -> None:
    """Let line number `call` of log.jsonl be the one that only fits in half."""
    opened, count = Path.open, 0

    class Half:
        def __init__(self, file: Any) -> None:
            self.file, self.writes = file, 0

        def __enter__(self) -> "Half":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, text: bytes) -> int:
            self.writes += 1
            if self.writes > 1:
                raise FULL
            return self.file.write(text[: len(text) // 2])

    def open_(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        nonlocal count
        file = opened(self, mode, *args, **options)
        if (self.name, mode) == ("log.jsonl", "ab"):
            count += 1
            return Half(file) if count >= call else file
        return file

    patch.setattr(Path, "open", open_)


def assert_equal_runs(run: Path, whole: Path) -> None:
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses_of(run) == losses_of(whole)


def in_forward(patch: pytest.MonkeyPatch, error: BaseException) -> int:
    fail_at(patch, trainer_module.TrainingStep, "forward", error, AT)
    return AT - 1


def in_backward(patch: pytest.MonkeyPatch, error: BaseException) -> int:
    fail_at(patch, torch.Tensor, "backward", error, AT)
    return AT - 1


def in_data(patch: pytest.MonkeyPatch, error: BaseException) -> int:
    fail_at(patch, trainer_module, "_to_device", error, AT)
    return AT - 1


def in_log(patch: pytest.MonkeyPatch, _error: BaseException) -> int:
    fill_disk_under_log(patch, AT)
    return AT


def in_board(patch: pytest.MonkeyPatch, error: BaseException) -> int:
    # two at the start, four pictures, and eight numbers of each iteration
    fail_at(patch, RecordWriter, "write", error, 2 + 4 + 8 * (AT - 1) + 1)
    return AT


DEAD = RuntimeError("DataLoader worker (pid 31) is killed by signal: Killed. ")
MISTAKE = ZeroDivisionError("a mistake of ours")


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("place", "error", "expected", "says"),
    [
        slow(in_forward, MemoryError(), TrainingError, "the memory of this machine is full. Fewer"),
        (in_backward, KeyboardInterrupt(), Interrupted, "The state after"),
        (in_data, InputError("a.jpg does not exist."), InputError, "a.jpg does not exist. The s"),
        slow(in_data, DEAD, TrainingError, "a process that loads images is killed by signal: K"),
        (in_log, FULL, InputError, "log.jsonl can't be written: No space left on device. The st"),
        slow(in_board, FULL, InputError, "can't be written: No space left on device. The state"),
        slow(in_forward, MISTAKE, ZeroDivisionError, "The state after"),
    ],
    ids=["memory", "ctrl-c", "image", "dead-worker", "log", "tensorboard", "mistake"],
)
def test_an_error_saves_the_last_whole_iteration(
    place: Callable[..., int],
    error: BaseException,
    expected: type[BaseException],
    says: str,
    data: DataPaths,
    whole: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        done = place(patch, error)
        with pytest.raises(expected) as caught:
            train(small_config(), small_settings(**SETTINGS), data, run, how_to_resume="COMMAND")
    text = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert says in text
    assert text.endswith(f"The state after iteration {done} of 6 is saved; go on with: COMMAND")
    assert last_state(run)["iteration"] == done
    assert (run / "log.jsonl").read_bytes().endswith(b"}\n")
    train(small_config(), small_settings(**SETTINGS), data, run, resume=True)
    if place is in_log:  # the line that did not fit is all that is missing
        content = (run / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in content] == [1, 2, 3, 5, 6]
        assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    else:
        assert_equal_runs(run, whole)


def test_half_changed_weights_are_never_saved(data: DataPaths, whole: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", small_settings(**SETTINGS | {"save_every": 2})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as caught:
        fail_at(patch, torch.optim.AdamW, "step", MemoryError(), AT)
        train(small_config(), settings, data, run)
    assert (
        "The state after iteration 2 of 6 is saved, that after 3 is not: the weights were being "
        "changed; go on with: train(..., resume=True)" in str(caught.value)
    )
    assert last_state(run)["iteration"] == 2
    train(small_config(), settings, data, run, resume=True)
    assert_equal_runs(run, whole)


def test_a_worker_that_dies_while_the_weights_change_is_noticed_after(
    data: DataPaths, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step, count = tmp_path / "run", torch.optim.AdamW.step, 0

    def alarm(_number: int, _frame: Any) -> None:  # as torch has it
        raise DEAD

    def stepped(self: Any, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == AT:
            signal.raise_signal(signal.SIGCHLD)
        return step(self, *args)

    before = signal.signal(signal.SIGCHLD, alarm)
    try:
        with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
            patch.setattr(torch.optim.AdamW, "step", stepped)
            train(small_config(), small_settings(**SETTINGS), data, run)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert f"The state after iteration {AT} of 6 is saved" in str(caught.value)
    train(small_config(), small_settings(**SETTINGS), data, run, resume=True)
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_where_nothing_can_be_saved_the_state_before_stays(data: DataPaths, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", small_settings(**SETTINGS | {"save_every": 2})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as caught:
        fail_at(patch, torch, "save", FULL, 2)
        train(small_config(), settings, data, run)
    text = str(caught.value)
    assert "0000004.pt can't be written: No space left on device. The state after" in text
    assert "iteration 2 of 6 is saved, that after 4 is not; go on with" in text
    assert [path.name for path in (run / "state").iterdir()] == ["0000002.pt"]


def test_no_state_is_older_than_two_minutes(
    data: DataPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, saves = 0.0, []
    monkeypatch.setattr(trainer_module, "monotonic", lambda: now)
    saved = trainer_module.save_state
    iteration = trainer_module.Trainer._iteration

    def save(run: Path, number: int, state: Any, **options: Any) -> None:
        saves.append((number, now))
        saved(run, number, state, **options)

    def takes_25_seconds(self: Any, *args: Any) -> Any:
        nonlocal now
        now += 25
        return iteration(self, *args)

    monkeypatch.setattr(trainer_module, "save_state", save)
    monkeypatch.setattr(trainer_module.Trainer, "_iteration", takes_25_seconds)
    train(small_config(), small_settings(iterations=11, save_every=100), data, tmp_path / "run")
    assert saves == [(4, 100.0), (8, 200.0), (11, 275.0)]


def kill_in(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let call number `call` of a function send SIGTERM to this process before its work."""
    wrapped, count = getattr(owner, name), 0

    def function(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return wrapped(*args, **options)

    patch.setattr(owner, name, function)


def after_evaluation(patch: pytest.MonkeyPatch) -> None:
    fail_at(patch, trainer_module.ProgressLog, "values", MemoryError(), 2)  # 1 has the losses


def in_evaluation(patch: pytest.MonkeyPatch) -> None:
    kill_in(patch, trainer_module.ProgressLog, "message", 1)


def in_iteration_before(patch: pytest.MonkeyPatch) -> None:
    kill_in(patch, trainer_module.Trainer, "_iteration", 1)


@pytest.fixture(scope="module")
def judged(data: DataPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two evaluations that nothing interrupted."""
    run = tmp_path_factory.mktemp("judged") / "run"
    train(small_config(), small_settings(iterations=2, eval_every=1), data, run, val=data)
    return run


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        slow(after_evaluation, TrainingError),
        (in_evaluation, Interrupted),
        slow(in_iteration_before, Interrupted),
    ],
)
def test_an_evaluation_that_was_interrupted_is_made_again(
    place: Callable[[pytest.MonkeyPatch], None],
    expected: type[BaseException],
    data: DataPaths,
    judged: Path,
    tmp_path: Path,
) -> None:
    run, settings = tmp_path / "run", small_settings(iterations=2, eval_every=1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(expected) as caught:
        place(patch)
        train(small_config(), settings, data, run, val=data)
    assert "The state after iteration 1 of 2 is saved" in str(caught.value)
    if isinstance(caught.value, Interrupted):
        assert caught.value.exit_status == 143
        assert "mask/AP" not in (run / "log.jsonl").read_text()  # it was not finished either
    train(small_config(), settings, data, run, val=data, resume=True)
    for name in ("model.safetensors", "best.safetensors"):
        assert (run / name).read_bytes() == (judged / name).read_bytes()
    assert without_times(run) == without_times(judged)


def without_times(run: Path) -> list[dict[str, Any]]:
    """The log of a run, without what was measured."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    measured = ("images_per_second", "memory_gb")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the memory of this machine is full"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 b"),
            "the memory of this machine is full",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "the memory of the GPU is full"),
        (RuntimeError("CUDA error: unspecified launch failure\nmore"), "the GPU failed: CUDA err"),
        (
            RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"),
            "a process that loads images exited unexpectedly. The system kills",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory. Please try to raise your limit."
            ),
            "the shared memory of this machine, /dev/shm, is full",
        ),
        (
            RuntimeError("unable to write to file </torch_9_4>: No space left on device (28)"),
            "the shared memory of this machine, /dev/shm, is full",
        ),
        (RuntimeError("x: No space left on device"), "can't be written: No space left on device."),
        (FULL, "a file of the run can't be written: No space left on device."),
        (OSError(5, "Input/output error", "a/1.jpg"), "a/1.jpg: Input/output error."),
        (OSError("[Errno 5] Input/output error"), "[Errno 5] Input/output error."),
        (EOFError(), "a process that loads images died."),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (KeyError("x"), None),
    ],
)
def test_what_the_machine_did_is_one_sentence(error: Exception, says: str | None) -> None:
    sentence = machine_sentence(error)
    if says is None:
        assert sentence is None
        assert error_with_advice(error, "Advice") is error and "Advice" in error.__notes__
    else:
        assert sentence is not None and says in sentence
        assert "\n" not in sentence and sentence.endswith(".")
        assert isinstance(error_with_advice(error, "Advice"), TrainingError)


@pytest.mark.parametrize("kind", [InputError, CheckpointError, TrainingError])
def test_an_error_of_ours_keeps_its_class(kind: type[CondInstError]) -> None:
    error = error_with_advice(kind("It broke."), "Mend it.")
    assert type(error) is kind and str(error) == "It broke. Mend it."
