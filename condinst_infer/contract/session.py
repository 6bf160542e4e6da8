"""The Session protocol: what every runtime offers."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import TensorSpec


class Session(Protocol):
    """One loaded model file. `run` gives arrays that stay valid until the next `run`."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Metadata: ...
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]: ...
    def close(self) -> None: ...


def session_repr(session: Session, runtime: str, *, path: Path | None = None) -> str:
    """The one-line text of a session: class, file, network, tensor sizes and `runtime`."""
    metadata = session.metadata
    config = metadata.config
    count = len(config.class_names)
    parts = [config.name, "1 class" if count == 1 else f"{count} classes"]
    if config.is_panoptic:
        parts.append(f"{len(config.panoptic.stuff_names)} kinds of stuff")
    parts.append(metadata.precision)
    if metadata.graph != "full":
        parts.append(f"{metadata.graph} graph")
    batch = "any batch" if metadata.batch is None else f"batch {metadata.batch}"
    size = "any size"
    if metadata.size is not None:
        size = f"{metadata.size[1]} x {metadata.size[0]} pixels"
    file = "" if path is None else f" {path}"
    return f"<{type(session).__name__}{file}: {', '.join([*parts, batch, size])}; {runtime}>"


class NodeTime(NamedTuple):
    """What one node of the network takes of a run; a Loop or an If with its body."""

    name: str  # "backbone/res3/0/conv1/Conv": the module it is from, where it is from one
    op: str  # in the runtime's words
    ms: float  # without the cost of measuring it, so a node of no work may be just below zero


@runtime_checkable
class Profiled(Protocol):
    """A session that can say where the time of a run goes."""

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> list[NodeTime]:
        """The mean of `repeats` runs for each node, in the order they run in."""
        ...
