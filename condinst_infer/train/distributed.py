"""Several processes as one: `torchrun` starts them, gradients and statistics are shared."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

PATIENCE = timedelta(hours=3)  # how long the others wait while the first one evaluates


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """True if this is the one that writes and prints."""
        return self.rank == 0


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Joins the processes `torchrun` started, or is alone.

    Args:
        device: "cpu", "cuda" or None for a GPU where there is one; each process takes its own.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, torch.device(kind))
        return
    own = (
        torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    )
    if kind == "cuda":
        torch.cuda.set_device(own)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count, own)
    finally:
        # a model that shares gradients is a cycle and holds the group, whose threads abort the
        # process if they outlive Python
        gc.collect()
        distributed.destroy_process_group()


def with_sync_bn(model: nn.Module) -> nn.Module:
    """`model` with its trained batch norms sharing statistics over all GPUs.

    Norms that keep their running statistics stay as they are. PyTorch has no such norm on a CPU.
    """
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            with_sync_bn(child)
    return model
