"""Choices among the entries of a result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def positions(index: slice | Sequence[int] | NDArray[Any], count: int) -> NDArray[np.intp]:
    """The places, [n] from 0, that a slice, bool [count] or integer indices choose of `count`.

    Raises:
        IndexError: a place that is not there, or an array of another shape or dtype.
    """
    if isinstance(index, slice):
        return np.arange(count)[index]
    chosen = np.asarray(index)
    if chosen.size == 0 and chosen.dtype != bool:
        chosen = chosen.astype(np.intp)  # an empty list has no dtype of its own
    if chosen.ndim != 1 or not (chosen.dtype == bool or np.issubdtype(chosen.dtype, np.integer)):
        raise IndexError(
            f"the index is {chosen.dtype} {chosen.shape}; it must be a number, a slice, "
            f"bool [{count}] or integers [n]"
        )
    if chosen.dtype == bool and len(chosen) != count:
        raise IndexError(f"the index is bool [{len(chosen)}]; there are {count} entries")
    return np.arange(count)[chosen]
