"""States of a run, to go on exactly where it stopped."""

import re
from pathlib import Path
from typing import Any

import torch

from condinst_infer.errors import CheckpointError
from condinst_infer.system.files import atomic_file

FOLDER = "state"  # of the run


def save_state(run: Path, iteration: int, state: dict[str, Any], *, keep: int) -> None:
    """Write the state after `iteration` iterations; of the older ones, the last `keep - 1` stay."""
    with atomic_file(run / FOLDER / f"{iteration:07d}.pt") as part:
        try:
            torch.save(state | {"iteration": iteration}, part)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error)) from None
    for old in _states(run)[:-keep]:
        old.unlink()


def has_state(run: Path) -> bool:
    """True if a run has anything to go on from."""
    return bool(_states(run))


def last_state(run: Path) -> dict[str, Any]:
    """The newest state of a run.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    states = _states(run)
    if not states:
        raise CheckpointError(f"{run} has no saved state to resume; leave --resume out.")
    try:
        return torch.load(states[-1], map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's unpickler stumbles over in damaged bytes
        raise CheckpointError(
            f"{states[-1]} is damaged ({type(error).__name__}); delete it to go on from the one "
            "before."
        ) from None


def _states(run: Path) -> list[Path]:
    found = (run / FOLDER).glob("*.pt")
    return sorted(path for path in found if re.fullmatch(r"\d{7,}", path.stem))
