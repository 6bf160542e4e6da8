"""Progress bars: one look for all long work."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, unit: str, *, description: str | None = None) -> "tqdm[Any]":
    """A bar that is shown on a terminal only, and only if the work takes more than two seconds."""
    return tqdm(total=total, unit=unit, desc=description, disable=None, delay=2)


def progress(items: Iterable[Any], unit: str, *, description: str | None = None) -> Any:
    """`items` one after the other, with a bar as `progress_bar` shows it."""
    return tqdm(items, unit=unit, desc=description, disable=None, delay=2)
