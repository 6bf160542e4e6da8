"""Names of the parts of the network in a profile of PyTorch."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

_PREFIX = "condinst:"


def span(name: str, op: str) -> AbstractContextManager[object]:
    """A part of the network that is no module of its own; costs nothing outside a profile."""
    if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
        return record_function(span_label(name, op))
    return nullcontext()


def span_label(name: str, op: str) -> str:
    """The label of a span: a part of the network, such as "fcos/controller", and its kind."""
    return f"{_PREFIX}{name}:{op}"


def node_of_label(label: str) -> tuple[str, str] | None:
    """The name and the kind in a label of `span_label`; None for a label of PyTorch's own."""
    if not label.startswith(_PREFIX):
        return None
    name, _, op = label.removeprefix(_PREFIX).rpartition(":")
    return name, op
