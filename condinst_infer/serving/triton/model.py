"""The model in Triton's Python backend: an image in, instances with native masks out."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from condinst_infer.config.model import MAX_PIXELS
from condinst_infer.contract.metadata import Metadata, metadata_from_props
from condinst_infer.contract.tensors import (
    TensorSpec,
    check_feeds,
    contract_inputs,
    contract_outputs,
)
from condinst_infer.errors import CondInstError, InputError, ModelFileError, SessionError
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.preprocess import image_from_file
from condinst_infer.results.instances import Instances
from condinst_infer.results.panoptic import PanopticSegmentation
from condinst_infer.system.json_text import parse_json

METADATA = "metadata.json"  # of the network, beside model.py
NETWORK = "{}_network"  # what the network of a model is called
_INT32, _FLOAT32, _TEXT = np.dtype(np.int32), np.dtype(np.float32), np.dtype(object)

INPUTS = {  # one of them
    "image": TensorSpec(_TEXT, (1,)),  # bytes of an image file
    "pixels": TensorSpec(np.dtype(np.uint8), ("H", "W", 3)),  # BGR
}
INSTANCES = {  # K instances, best score first
    "boxes": TensorSpec(_FLOAT32, ("K", 4)),  # x1 y1 x2 y2, pixels of the image that was sent
    "scores": TensorSpec(_FLOAT32, ("K",)),  # 0 to 1
    "labels": TensorSpec(_INT32, ("K",)),  # class index
    "names": TensorSpec(_TEXT, ("K",)),  # class names
    "masks": TensorSpec(_TEXT, ("K",)),  # COCO RLE of the image's size, as JSON
}
PANOPTIC = {  # S segments; of panoptic models
    "id_map": TensorSpec(_INT32, ("H", "W")),  # what each pixel belongs to; 0 is void
    "segments": TensorSpec(_TEXT, ("S",)),  # JSON
}


class TritonSession:
    """A network that Triton runs, asked from inside its Python backend.

    Args:
        triton: the module triton_python_backend_utils.
        name: of the network in the model repository.
        metadata: of the network's file.
    """

    def __init__(self, triton: Any, name: str, metadata: Metadata) -> None:
        self._triton, self._name, self.metadata = triton, name, metadata
        self.inputs, self.outputs = contract_inputs(metadata), contract_outputs(metadata)

    def __repr__(self) -> str:
        return f"<TritonSession: {self.metadata.describe()}; model {self._name} in Triton>"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; Triton may run several calls together."""
        check_feeds(self.inputs, feeds)
        triton = self._triton
        response = triton.InferenceRequest(
            model_name=self._name,
            requested_output_names=list(self.outputs),
            inputs=[triton.Tensor(name, array) for name, array in feeds.items()],
            # a network on a GPU would leave them there
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise SessionError(f"{self._name} failed: {response.error().message()}")
        outputs = {}
        for name, spec in self.outputs.items():
            tensor = triton.get_output_tensor_by_name(response, name)
            if tensor is None:
                raise SessionError(f"{self._name} gave no output {name!r}.")
            array = tensor.as_numpy()
            # Triton knows no tensor of the batch axis alone: [N, 1] in its place
            outputs[name] = array.reshape(-1) if len(spec.shape) == 1 else array
        return outputs

    def close(self) -> None:
        """Nothing to do: the network is Triton's."""


class TritonModel:
    """A pipeline behind Triton's requests.

    Args:
        triton: the module triton_python_backend_utils.
        name: of the model in the repository.
        folder: of its model.py.

    Raises:
        ModelFileError: the metadata are not ours, or were changed.
    """

    def __init__(self, triton: Any, name: str, folder: Path) -> None:
        path = folder / METADATA
        metadata = metadata_from_props(_props(path), path)
        self._triton = triton
        self._pipeline = Pipeline(TritonSession(triton, NETWORK.format(name), metadata))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The response to each request; one that fails spoils no other."""
        return [self._response(request) for request in requests]

    def close(self) -> None:
        """Free the pipeline."""
        self._pipeline.close()

    def _response(self, request: Any) -> Any:
        triton = self._triton
        try:
            outputs = self._outputs(self._image(request), set(request.requested_output_names()))
            tensors = [triton.Tensor(name, array) for name, array in outputs.items()]
            return triton.InferenceResponse(output_tensors=tensors)
        except InputError as error:
            failure = triton.TritonError(str(error), triton.TritonError.INVALID_ARG)
        except CondInstError as error:
            failure = triton.TritonError(str(error))
        except Exception as error:
            failure = triton.TritonError(f"{type(error).__name__}: {error}")
        return triton.InferenceResponse(output_tensors=[], error=failure)

    def _image(self, request: Any) -> np.ndarray:
        """BGR uint8 [H, W, 3]."""
        given = {
            name: tensor.as_numpy()
            for name in INPUTS
            if (tensor := self._triton.get_input_tensor_by_name(request, name)) is not None
        }
        if len(given) != 1:
            raise InputError(f"send one of {' and '.join(INPUTS)}; {len(given)} came.")
        if "pixels" in given:
            return given["pixels"]
        return image_from_file(BytesIO(given["image"].item()), "the image", max_pixels=MAX_PIXELS)

    def _outputs(self, image: np.ndarray, wanted: set[str]) -> dict[str, np.ndarray]:
        """The wanted outputs, and those that come with them."""
        outputs = {}
        if not wanted.isdisjoint(INSTANCES):
            outputs |= _tensors_of_instances(self._pipeline(image))
        if not wanted.isdisjoint(PANOPTIC):
            outputs |= _tensors_of_segments(self._pipeline.panoptic(image))
        return outputs


def _props(path: Path) -> dict[str, str]:
    """The metadata of the network's file, texts by name."""
    try:
        props = parse_json(path.read_bytes(), str(path), ModelFileError)
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}.") from None
    if not isinstance(props, dict) or not all(isinstance(text, str) for text in props.values()):
        raise ModelFileError(f"{path} is not what condinst-infer writes: an object of texts.")
    return props


def _tensors_of_instances(instances: Instances) -> dict[str, np.ndarray]:
    data = instances.to_dict()
    return {
        "boxes": instances.boxes,
        "scores": instances.scores,
        "labels": instances.labels,
        "names": _texts(data["names"]),
        "masks": _texts([json.dumps(rle) for rle in data["masks"]]),
    }


def _tensors_of_segments(segmentation: PanopticSegmentation) -> dict[str, np.ndarray]:
    segments = [json.dumps(segment.to_dict()) for segment in segmentation.segments]
    return {"id_map": segmentation.id_map, "segments": _texts(segments)}


def _texts(texts: Sequence[str]) -> np.ndarray:
    """A tensor of UTF-8 bytes, object [n]."""
    return np.array([text.encode() for text in texts], dtype=object)
