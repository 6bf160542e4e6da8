"""States of a run, to go on exactly where it stopped."""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condinst_infer import checkpoint
from condinst_infer.errors import CheckpointError, InputError
from condinst_infer.model.weights import check_finite
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import check_readable_file

FOLDER = "state"  # of the run
_KEYS = {"model", "optimizer", "scaler", "best", "iteration"}
_log = logging.getLogger(__name__)

State = dict[str, Any]


def save_state(run: Path, iteration: int, state: State, *, keep: int) -> None:
    """Write the state after `iteration` iterations; of the older ones, the last `keep - 1` stay.

    Later ones stay too: the run went back before them, since they can't be read.

    Raises:
        InputError: the folder of the run can't be written.
    """
    path = run / FOLDER / f"{iteration:07d}.pt"
    with atomic_file(path) as part:
        torch.save(state | {"iteration": iteration}, part)
    done = [other for other in _states(run) if int(other.stem) <= iteration]
    for old in done[:-keep]:
        try:
            old.unlink()
        except OSError as error:
            raise InputError(f"{old} can't be removed: {error.strerror}.") from None


def has_state(run: Path) -> bool:
    """True if a run has anything to go on from."""
    return bool(_states(run))


def last_state(run: Path, misfit: Callable[[State], str] = lambda _: "") -> State:
    """The newest state of a run that can be used; newer ones are named in a warning.

    Args:
        misfit: says why a state that was read does not fit, or nothing.

    Raises:
        CheckpointError: there is none.
    """
    states = _states(run)
    if not states:
        raise CheckpointError(f"{run} has no saved state to resume; leave --resume out.")
    problems: list[str] = []
    for path in reversed(states):
        try:
            state = _read(path)
            if reason := misfit(state):
                raise CheckpointError(f"{path} {reason}.")
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _log.warning("%s The run goes on from %s in its place.", problem, path)
        return state
    older = f" The {len(states) - 1} older can't be used either." if problems[1:] else ""
    raise CheckpointError(f"{problems[0]}{older} Start again in another folder.")


def state_misfit(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """The reason why `state` is not of this model and this optimizer, or nothing."""
    try:
        differing = _differing(state["model"], model.state_dict())
        if differing:
            return f"is of another model: {len(differing)} tensors differ, such as {differing[0]}"
        own, found = optimizer.state_dict(), state["optimizer"]
        sizes = [[len(group["params"]) for group in of["param_groups"]] for of in (own, found)]
        kinds = [
            [name in group for group in of["param_groups"] for name in ("momentum", "betas")]
            for of in (own, found)
        ]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fits = all(
            value.dim() == 0 or value.shape == parameters[number].shape
            for number, values in found["state"].items()
            for value in values.values()
            if isinstance(value, torch.Tensor)
        )
        if sizes[0] != sizes[1] or kinds[0] != kinds[1] or not fits:
            return "is of another optimizer"
        numbers = (state["iteration"], state["best"], state.get("judged_at", 0))
        if not all(isinstance(number, int | float) for number in numbers):
            return "has no number of iterations"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return "is of another version of this package"
    return ""


def _differing(found: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that only one side has, or that have two shapes."""
    return sorted(
        name
        for name in {*found, *own}
        if name not in found or name not in own or found[name].shape != own[name].shape
    )


def _read(path: Path) -> State:
    """The state in a file.

    Raises:
        CheckpointError: it is damaged, has weights that are not finite, or is something else.
    """
    check_readable_file(path, CheckpointError)
    try:
        state = checkpoint.load_torch_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    except checkpoint.DamagedFileError as error:
        raise CheckpointError(f"{path} is damaged or no state of a training: {error}.") from None
    except Exception as error:  # whatever torch's unpickler stumbles over in damaged bytes
        raise CheckpointError(
            f"{path} is damaged or no state of a training ({type(error).__name__})."
        ) from None
    if not isinstance(state, dict) or not set(state) >= _KEYS:
        raise CheckpointError(f"{path} is no state of a training.")
    try:
        check_finite(
            {name: t for name, t in dict(state["model"]).items() if isinstance(t, torch.Tensor)}
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    except (TypeError, ValueError):
        raise CheckpointError(f"{path} is no state of a training.") from None
    return state


def _states(run: Path) -> list[Path]:
    found = (run / FOLDER).glob("*.pt")
    return sorted(path for path in found if re.fullmatch(r"\d{7,}", path.stem))
