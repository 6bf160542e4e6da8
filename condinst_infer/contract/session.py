"""The Session protocol: what every runtime offers."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import TensorSpec


class Session(Protocol):
    """One loaded model file. `run` returns new arrays; `close` frees the model."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Metadata: ...
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...
    def close(self) -> None: ...


class NodeTime(NamedTuple):
    """The time of one node of the network in a run; a Loop or an If with its body."""

    name: str  # "backbone/res3/0/conv1/Conv": the module it is from, where it is from one
    op: str  # in the runtime's words
    ms: float  # without the cost of measuring it, so a node of no work may be just below zero


@runtime_checkable
class Profiled(Protocol):
    """A session that can say where the time of a run goes."""

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> list[NodeTime]:
        """The mean of `repeats` runs for each node, in the order they run in."""
        ...
