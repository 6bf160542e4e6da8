"""The network in PyTorch behind the same contract as every other runtime."""

from collections.abc import Mapping

import numpy as np
import torch

from condinst_infer.errors import SessionError
from condinst_infer.metadata import Metadata
from condinst_infer.model import CondInst
from condinst_infer.session import check_feeds, check_threads, contract_inputs, contract_outputs


class TorchSession:
    """A network run by PyTorch where its weights are; safe to call from several threads.

    Args:
        model: in evaluation mode.
        checkpoint_sha256: of the file it came from, for the metadata.
        threads: CPU threads, at least 1; a setting of the whole process in PyTorch. None keeps it.
    """

    def __init__(
        self, model: CondInst, *, checkpoint_sha256: str = "", threads: int | None = None
    ) -> None:
        check_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self.model: CondInst | None = model
        self.metadata = Metadata(
            config=model.config,
            checkpoint_sha256=checkpoint_sha256,
            versions={"torch": torch.__version__},
        )
        self.inputs = contract_inputs(self.metadata)
        self.outputs = contract_outputs(self.metadata)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; `feeds` by name, as `inputs` describes them."""
        if self.model is None:
            raise SessionError("this session is closed.")
        check_feeds(self.inputs, feeds)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            outputs = self.model(*(torch.from_numpy(feeds[n]).to(device) for n in self.inputs))
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self.model = None
