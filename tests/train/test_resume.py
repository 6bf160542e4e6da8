"""Files of a run that are read back: whatever is wrong with one, there is one sentence about it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from condinst_infer import checkpoint
from condinst_infer.errors import CheckpointError, InputError
from condinst_infer.train.optimizer import optimizer_for
from condinst_infer.train.progress_log import cut_log
from condinst_infer.train.resume import last_state, save_state, state_misfit
from condinst_infer.train.run import DataPaths, train
from tests.support.command_line import Run, assert_refused
from tests.support.damage import DAMAGES, Damage, truncate
from tests.support.damaged_bits import flip, spread
from tests.support.small_training import (
    command_line,
    losses_of,
    small_config,
    small_data,
    small_settings,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return small_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def trained(data: DataPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of four iterations with two states, which tests copy."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(), small_settings(iterations=4), data, run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def misfit(trained: Path) -> Callable[[Any], str]:
    """The reason why a state does not fit the model of `trained`."""
    model = checkpoint.load(trained / "model.safetensors")
    optimizer = optimizer_for(model, small_settings())
    return lambda state: state_misfit(state, model, optimizer)


def write_other_model(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] = {name[1:]: value for name, value in state["model"].items()}
    torch.save(state, path)


def write_other_shape(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"] |= {"fcos.class_logits.bias": torch.zeros(5)}
    torch.save(state, path)


def write_other_optimizer(path: Path) -> None:
    model = checkpoint.load(path.parents[1] / "model.safetensors")
    state = torch.load(path, weights_only=True)
    optimizer = optimizer_for(model, small_settings(optimizer="sgd"))
    torch.save(state | {"optimizer": optimizer.state_dict()}, path)


def write_other_version(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save(state | {"optimizer": [state["optimizer"]]}, path)


STATE_DAMAGES: dict[str, Damage] = {
    **DAMAGES,
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "other keys": lambda path: torch.save({"model": {}}, path),
    "other model": write_other_model,
    "other shape": write_other_shape,
    "other optimizer": write_other_optimizer,
    "other version": write_other_version,
}


def resumed(condinst: Run, data: DataPaths, run: Path, **changes: Any) -> tuple[int, str, str]:
    return condinst(*command_line(data, run, iterations=4, **changes), "--resume")


@pytest.mark.parametrize("kind", STATE_DAMAGES)
def test_a_damaged_state_is_passed_over_for_the_one_before(
    kind: str, run: Path, misfit: Callable[[Any], str], caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = run / "state" / "0000004.pt", run / "state" / "0000002.pt"
    STATE_DAMAGES[kind](newest)
    with caplog.at_level(logging.WARNING):
        assert last_state(run, misfit)["iteration"] == 2
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith(str(newest)) and "\n" not in text
    assert text.endswith(f"The run goes on from {before} in its place.")

    STATE_DAMAGES[kind](before)
    with pytest.raises(CheckpointError) as caught:
        last_state(run, misfit)
    text = str(caught.value)
    assert text.startswith(str(newest)) and "\n" not in text
    assert text.endswith("The 1 older can't be used either. Start again in another folder.")
    assert newest.exists() and before.exists()


@pytest.mark.parametrize(
    "count",
    [3, pytest.param(30, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.long)],
)
def test_a_flipped_bit_in_a_state_is_noticed_or_changes_nothing(
    count: int, run: Path, misfit: Callable[[Any], str]
) -> None:
    newest = run / "state" / "0000004.pt"
    whole, noticed = last_state(run, misfit), 0
    size = newest.stat().st_size
    # the whole file, and its directory of contents, which is the last of it
    for position in [*spread(0, size, count), *spread(size - 3000, size, count)]:
        flip(newest, position)
        state = last_state(run, misfit)
        noticed += state["iteration"] == 2
        if state["iteration"] != 2:  # a date or padding
            torch.testing.assert_close(state, whole, rtol=0, atol=0)
        flip(newest, position)
    assert noticed >= count


def write_nan(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["model"]["fcos.class_logits.bias"][0] = torch.nan
    torch.save(state, path)


def test_a_state_with_weights_that_are_not_finite_is_passed_over(
    data: DataPaths, run: Path, condinst: Run
) -> None:
    write_nan(run / "state" / "0000004.pt")
    assert last_state(run)["iteration"] == 2
    write_nan(run / "state" / "0000002.pt")
    words = "0000004.pt can't be used: the weight fcos.class_logits.bias holds NaN"
    status, _, err = resumed(condinst, data, run)
    assert status == 2 and words in err and "The 1 older can't be used either" in err


def test_a_run_with_a_damaged_state_ends_as_the_whole_one(
    data: DataPaths, run: Path, trained: Path, condinst: Run
) -> None:
    truncate(run / "state" / "0000004.pt")
    (run / "model.safetensors").unlink()
    status, _, err = resumed(condinst, data, run)
    assert status == 0 and "Traceback" not in err
    assert losses_of(run) == losses_of(trained)
    name = "model.safetensors"
    assert (run / name).read_bytes() == (trained / name).read_bytes()
    assert last_state(run)["iteration"] == 4  # it was written anew


def test_a_state_that_can_not_be_read_never_costs_a_whole_one(tmp_path: Path) -> None:
    for iteration in (1, 9):
        save_state(tmp_path, iteration, {"model": {}}, keep=1)
    truncate(tmp_path / "state" / "0000009.pt")
    save_state(tmp_path, 5, {"model": {}}, keep=1)  # the run went back
    save_state(tmp_path, 6, {"model": {}}, keep=1)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["0000006.pt", "0000009.pt"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_config_is_one_sentence(
    kind: str, data: DataPaths, run: Path, condinst: Run
) -> None:
    DAMAGES[kind](run / "config.json")
    assert_refused(resumed(condinst, data, run), str(run / "config.json"))


def test_a_missing_config_and_one_of_another_version_are_one_sentence(
    data: DataPaths, run: Path, condinst: Run
) -> None:
    path = run / "config.json"
    content = json.loads(path.read_text())
    del content["settings"]["clip_norm"]
    content["versions"]["condinst-infer"] = "0.0.9"
    path.write_text(json.dumps(content))
    says = "has no clip_norm: it was written by condinst-infer 0.0.9, this is"
    assert_refused(resumed(condinst, data, run), says)
    path.unlink()
    assert_refused(resumed(condinst, data, run), "config.json does not exist")


@pytest.mark.parametrize("kind", sorted({*DAMAGES} - {"empty", "truncated", "zeros"}))
def test_a_log_of_another_kind_is_one_sentence(
    kind: str, data: DataPaths, run: Path, condinst: Run
) -> None:
    path = run / "log.jsonl"
    DAMAGES[kind](path)
    before = path.read_bytes() if path.is_file() else b""
    status, _, err = resumed(condinst, data, run)
    (line,) = [line for line in err.splitlines() if line.startswith("condinst: ")]
    assert status == 2 and str(path) in line and "Traceback" not in err
    assert not path.is_file() or path.read_bytes() == before


LINES = [b'{"iteration": %d, "loss/total": 1.0}\n' % i for i in (1, 2, 2, 3, 4)]
LINES[2] = b'{"iteration": 2, "mask/AP": 7}\n'


@pytest.mark.parametrize(
    ("content", "start", "evaluated", "kept"),
    [
        (b"".join(LINES), 4, True, 5),
        (b"".join(LINES), 3, True, 4),
        (b"".join(LINES), 2, True, 3),
        (b"".join(LINES), 2, False, 2),
        (b"".join(LINES), 0, True, 0),
        (b"".join(LINES) + LINES[0][:9], 4, True, 5),
        (b"".join(LINES)[:-1], 4, True, 4),  # all but the end of the line
        (b"".join(LINES) + b"{", 9, True, 5),
        (b"".join(LINES) + bytes(300), 9, True, 5),
        (LINES[0][:20], 9, True, 0),
        (b"", 9, True, 0),
    ],
)
def test_a_log_is_cut_where_the_run_goes_on(
    content: bytes, start: int, evaluated: bool, kept: int, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    number = path.stat().st_ino
    cut_log(path, start, evaluated=evaluated)
    assert path.read_bytes() == b"".join(LINES[:kept])
    assert path.stat().st_ino == number


@pytest.mark.parametrize("line", [b"[1]", b'{"loss": 1}', b'{"iteration": "1"}', b"\xff", b""])
def test_a_line_of_something_else_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    content = LINES[0] + line + b"\n" + LINES[1]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line 2 of .*log.jsonl is not that of a training's log"):
        cut_log(path, 1)
    assert path.read_bytes() == content


def test_there_is_no_log_before_the_first_line(tmp_path: Path) -> None:
    cut_log(tmp_path / "log.jsonl", 0)
    assert list(tmp_path.iterdir()) == []
