"""The Python model of a repository that `condinst export --triton` writes."""

from pathlib import Path

import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  # Triton's

from condinst_infer.serving.triton.model import TritonModel


class TritonPythonModel:
    """Named and called as Triton's Python backend wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called when Triton loads the model."""
        self._model = TritonModel(pb_utils, args["model_name"], Path(__file__).parent)

    def execute(self, requests: list) -> list:
        """Called with requests; gives a response for each."""
        return self._model.execute(requests)

    def finalize(self) -> None:
        """Called when Triton unloads the model."""
        self._model.close()
