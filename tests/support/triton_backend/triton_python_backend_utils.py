"""Stand-in for the module of this name inside Triton, with its documented interface.

`server` answers the requests a model makes; tests/support/triton_server.py sets it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

TRITONSERVER_MEMORY_CPU, TRITONSERVER_MEMORY_GPU = 0, 1
server: Any = None


class TritonError:
    """Why a request failed."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = range(4)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self.code = message, code

    def message(self) -> str:
        return self._message


class TritonModelException(Exception):
    """What the backend raises."""


class PreferredMemory:
    """Where the outputs of a request are wanted."""

    def __init__(self, memory: int, device: int) -> None:
        self.memory = memory


class Tensor:
    """A named array; texts are objects, as in Triton."""

    def __init__(self, name: str, array: np.ndarray, memory: int = TRITONSERVER_MEMORY_CPU) -> None:
        if array.dtype.kind not in "buifO":
            raise TritonModelException(f"{array.dtype} is no type of Triton's.")
        self._name, self._array, self._memory = name, np.ascontiguousarray(array), memory

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        if self._memory == TRITONSERVER_MEMORY_GPU:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class InferenceResponse:
    """Outputs or an error."""

    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    """A request to a model: that of a client, or one that a model makes."""

    def __init__(
        self,
        model_name: str,
        requested_output_names: Sequence[str],
        inputs: Sequence[Tensor],
        preferred_memory: PreferredMemory | None = None,
    ) -> None:
        self.model_name, self._names = model_name, list(requested_output_names)
        self._inputs, self.preferred_memory = list(inputs), preferred_memory

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._names

    def exec(self) -> InferenceResponse:
        return server.answer(self)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)
