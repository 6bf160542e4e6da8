"""Stand-in for Triton: loads a model repository by its rules and answers requests.

What it checks is what the documentation and the sources of Triton, its ONNX Runtime backend and
its Python backend say; Triton itself runs on no machine of the tests.
"""

import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as backend
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from triton_python_backend_utils import InferenceRequest, InferenceResponse, Tensor, TritonError
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

import condinst_infer as ci
from condinst_infer.serving.triton.repository import write_repository

Shape = Sequence[int]
# the published schema; made when it is imported, so no type checker sees what is in it
schema: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")
TYPES = {  # of the API: the schema's without TYPE_, but for texts
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "BYTES": np.dtype(object),
}
ONNX = {"UINT8": "uint8", "INT32": "int32", "FP16": "float16", "FP32": "float"}


def type_of(tensor: Any) -> str:
    """The API's name of a config's type."""
    return schema.DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")


def full_shape(config: Any, dims: Iterable[int]) -> list[int]:
    """What a config's dims are with the batch axis."""
    return [-1] * (config.max_batch_size > 0) + list(dims)


def fits(shape: Shape, needed: Shape) -> bool:
    return len(shape) == len(needed) and all(
        want in (-1, side) for side, want in zip(shape, needed, strict=True)
    )


class Refused(Exception):
    """What Triton answers with an error."""


class Network:
    """The ONNX Runtime backend."""

    def __init__(self, folder: Path, config: Any, on_gpu: bool) -> None:
        self.config, self._on_gpu = config, on_gpu
        self.session = ort.InferenceSession(folder / "1" / "model.onnx")
        self.runs: list[Mapping[str, np.ndarray]] = []
        for tensors, found, exact in (
            (config.input, self.session.get_inputs(), False),
            (config.output, self.session.get_outputs(), True),
        ):
            values = {value.name: value for value in found}
            assert {tensor.name for tensor in tensors} == set(values)
            for tensor in tensors:
                value = values[tensor.name]
                assert value.type == f"tensor({ONNX[type_of(tensor)]})"
                # what the backend calls CompareDimsSupported
                dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
                shape = full_shape(config, dims)
                sides = [side if isinstance(side, int) else -1 for side in value.shape]
                assert not config.max_batch_size or sides[0] == -1
                assert sides == shape if exact else fits(shape, sides) or fits(sides, shape)

    def answer(self, request: InferenceRequest) -> InferenceResponse:
        feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self.runs.append(feeds)
        names = request.requested_output_names()
        wanted = request.preferred_memory
        memory = wanted.memory if wanted else int(self._on_gpu)
        arrays: dict[str, Any] = dict(zip(names, self.session.run(names, feeds), strict=True))
        for tensor in self.config.output:
            if tensor.HasField("reshape"):
                batch = arrays[tensor.name].shape[: self.config.max_batch_size > 0]
                arrays[tensor.name] = arrays[tensor.name].reshape(*batch, *tensor.dims)
        return InferenceResponse([Tensor(n, array, memory) for n, array in arrays.items()])


class Step:
    """The Python backend with one instance."""

    def __init__(self, folder: Path, config: Any) -> None:
        assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
        self.config = config
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        self.model.initialize(
            {
                "model_config": MessageToJson(config, preserving_proto_field_name=True),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": config.name,
            }
        )

    def answer(self, request: InferenceRequest) -> InferenceResponse:
        (response,) = self.model.execute([request])
        return response


class Server:
    """A Triton with all models of a repository."""

    def __init__(self, repository: Path, *, on_gpu: bool = False) -> None:
        backend.server = self
        self.models: dict[str, Any] = {}
        for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
            text = (folder / "config.pbtxt").read_text()
            config = text_format.Parse(text, schema.ModelConfig())
            check(config, folder)
            if config.backend == "python":
                self.models[config.name] = Step(folder, config)
            elif config.backend == "onnxruntime":
                self.models[config.name] = Network(folder, config, on_gpu)

    def answer(self, request: InferenceRequest) -> InferenceResponse:
        """The response, checked against the config as the request is."""
        model = self.models[request.model_name]
        config = model.config
        try:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            needed = {tensor.name for tensor in config.input if not tensor.optional}
            check_tensors(config, config.input, given, needed)
            response = model.answer(request)
            if response.has_error():
                return response
            wanted = set(request.requested_output_names())
            kept = [t for t in response.output_tensors() if t.name() in wanted]
            if not any(tensor._memory for tensor in kept):
                check_tensors(config, config.output, {t.name(): t.as_numpy() for t in kept}, wanted)
            return InferenceResponse(kept)
        except Refused as error:
            return InferenceResponse([], TritonError(str(error), TritonError.INVALID_ARG))

    def infer(self, model: str, *wanted: str, **inputs: np.ndarray) -> InferenceResponse:
        """The response to a client; it gets all outputs where it wants none in particular."""
        names = wanted or [tensor.name for tensor in self.models[model].config.output]
        tensors = [Tensor(name, array) for name, array in inputs.items()]
        return self.answer(InferenceRequest(model, names, tensors))


def check(config: Any, folder: Path) -> None:
    """What Triton checks of any config."""
    assert config.name == folder.name
    assert config.input and config.output
    (group,) = config.instance_group
    assert group.count > 0
    assert not config.HasField("dynamic_batching") or config.max_batch_size > 0
    for tensor in (*config.input, *config.output):
        assert tensor.dims and all(side == -1 or side > 0 for side in tensor.dims)
        if tensor.HasField("reshape") and not tensor.reshape.shape:
            assert list(tensor.dims) == [1] and config.max_batch_size > 0


def check_tensors(
    config: Any, tensors: Iterable[Any], given: Mapping[str, np.ndarray], needed: set[str]
) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    if missing := (needed - set(given)) | (set(given) - set(known)):
        raise Refused(f"missing or unknown: {sorted(missing)}")
    for name, array in given.items():
        shape = full_shape(config, known[name].dims)
        if array.dtype != TYPES[type_of(known[name])] or not fits(array.shape, shape):
            raise Refused(f"{name} is {array.dtype} {array.shape}, the config says {shape}")
        if config.max_batch_size and len(array) > config.max_batch_size:
            raise Refused(f"{name} is larger than max_batch_size")


class Door(BaseHTTPRequestHandler):
    """POST /v2/models/NAME/infer with the binary data extension of the KServe protocol."""

    server_version, protocol_version = "stand-in", "HTTP/1.1"
    triton: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = int(self.headers["Inference-Header-Content-Length"])
        asked, rest, inputs = json.loads(body[:head]), body[head:], {}
        for tensor in asked["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            inputs[tensor["name"]] = array_from_bytes(tensor, rest[:size])
            rest = rest[size:]
        names = [output["name"] for output in asked["outputs"]]
        model = self.path.split("/")[3]
        response = self.triton.infer(model, *names, **inputs)
        if (error := response.error()) is not None:
            status = 400 if error.code == TritonError.INVALID_ARG else 500
            return self._send(status, json.dumps({"error": error.message()}).encode(), b"")
        outputs, data = [], b""
        for tensor in response.output_tensors():
            array = tensor.as_numpy()
            kind = next(kind for kind, dtype in TYPES.items() if dtype == array.dtype)
            part = serialize_byte_tensor(array).item() if kind == "BYTES" and array.size else array
            raw = part if isinstance(part, bytes) else part.tobytes()
            size = {"binary_data_size": len(raw)}
            shape = list(array.shape)
            outputs.append(
                {"name": tensor.name(), "datatype": kind, "shape": shape, "parameters": size}
            )
            data += raw
        self._send(200, json.dumps({"model_name": model, "outputs": outputs}).encode(), data)

    def _send(self, status: int, head: bytes, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(head) + len(data)))
        if data:
            self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.end_headers()
        self.wfile.write(head + data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def array_from_bytes(tensor: Mapping[str, Any], data: bytes) -> np.ndarray:
    if tensor["datatype"] == "BYTES":
        return deserialize_bytes_tensor(data).reshape(tensor["shape"])
    return np.frombuffer(data, TYPES[tensor["datatype"]]).reshape(tensor["shape"])


def served(model: Path, folder: Path, **options: bool) -> Server:
    """The stand-in with a repository of `model`; `folder` is new."""
    folder.mkdir()
    write_repository(folder, "model", model)
    return Server(folder, **options)


def outputs(response: InferenceResponse) -> dict[str, np.ndarray]:
    error = response.error()
    assert error is None, error and error.message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def assert_equal(got: Mapping[str, np.ndarray], found: ci.Instances) -> None:
    for name in ("boxes", "scores", "labels"):
        expected = getattr(found, name)
        assert got[name].dtype == expected.dtype
        np.testing.assert_array_equal(got[name], expected)
    assert [name.decode() for name in got["names"]] == list(found.names)
    assert [json.loads(text) for text in got["masks"]] == found.rle()
