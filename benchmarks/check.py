"""What a check of a kernel says."""

from typing import NamedTuple


class Check(NamedTuple):
    """How far a kernel is from its twin in one case, and how far it may be."""

    kernel: str
    case: str
    difference: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.limit  # also refuses NaN
