"""The last whole iteration of a training, which is what is saved when the next one fails."""

import torch
from torch import Tensor, nn

from condinst_infer.errors import TrainingError


class WholeIteration:
    """The knowledge of whether the weights are those after a whole iteration, or can be again.

    A forward pass changes the statistics of batch norms, and only them; `restore` puts them back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._buffers: list[Tensor] | None = None  # as of the last whole iteration, if changed
        self.is_torn = False  # weights are being changed

    def begin(self) -> None:
        """Remember what an iteration changes from its start."""
        self._buffers = [buffer.clone() for buffer in self._model.buffers()]

    def end(self) -> None:
        """Take the present weights as those of a whole iteration."""
        self._buffers = None
        self.is_torn = False

    def restore(self) -> None:
        """Go back to the last whole iteration.

        Raises:
            TrainingError: it is too late for that.
        """
        if self.is_torn:
            raise TrainingError("the weights were being changed.")
        with torch.no_grad():
            for buffer, value in zip(self._model.buffers(), self._buffers or (), strict=False):
                buffer.copy_(value)
        self._buffers = None
