"""ONNX Runtime session: CPU, or CUDA where onnxruntime-gpu is installed."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from condinst_infer.config.validation import check_threads
from condinst_infer.contract.metadata import metadata_from_props
from condinst_infer.contract.tensors import TensorSpec, check_contract, check_feeds
from condinst_infer.errors import ConfigError, ModelFileError, SessionError, require
from condinst_infer.system.paths import check_readable_file, is_utf8_name, read_bytes

if TYPE_CHECKING:
    from condinst_infer.contract.session import NodeTime
    from condinst_infer.cuda.arrays import DeviceArray
    from condinst_infer.cuda.stream import Stream

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
}
_SMALL = 64  # pixels; any input works that is a multiple of 32
_SMALL_RUNS = 5


class OrtSession:
    """An exported .onnx file in ONNX Runtime; `run` may be called from several threads at once.

    Args:
        path: a file written by `condinst export`.
        device: "cpu" or "cuda".
        device_index: the GPU.
        threads: CPU threads of one `run`, at least 1; None lets ONNX Runtime take all cores.
        stream: number of the CUDA stream that all work goes on; None lets ONNX Runtime make one.
        graph: the serialized graph of the file with `extra` inputs and outputs, which is run in
            place of the file: for those who look inside.
        extra: names that are not part of the contract; extra inputs have a default.

    Raises:
        ModelFileError: missing, not ONNX, not ours, or changed after export.
        SessionError: the runtime or the device is missing.
    """

    capturable = False  # some of its operations run on the host

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        device_index: int = 0,
        threads: int | None = None,
        stream: int | None = None,
        graph: bytes | None = None,
        extra: Collection[str] = (),
    ) -> None:
        check_threads(threads)
        self.path = Path(path)
        if graph is None and not is_utf8_name(self.path):
            graph = read_bytes(self.path, ModelFileError)  # ONNX Runtime takes no such name
        check_readable_file(self.path, ModelFileError)
        ort = require("onnxruntime", "cpu")
        providers = _providers(ort, device)
        settings = [{} for _ in providers]
        if device == "cuda":
            settings[0]["device_id"] = str(device_index)
        if stream is not None:
            settings[0]["user_compute_stream"] = str(stream)
        self._threads, self._graph = threads, graph
        self._providers = {"providers": providers, "provider_options": settings}
        session = self._load()
        if session.get_providers()[0] != providers[0]:
            # it falls back silently when the CUDA libraries don't load
            raise SessionError(
                f"ONNX Runtime could not start {providers[0]}; CUDA or cuDNN libraries are "
                "missing or of another version. See: condinst doctor"
            )
        try:
            self.props: dict[str, str] = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError:
            raise ModelFileError(f"the metadata of {self.path} is not UTF-8 text.") from None
        self.metadata = metadata_from_props(self.props, self.path)
        self.inputs, self.outputs = (
            _specs([value for value in values if value.name not in extra])
            for values in (session.get_inputs(), session.get_outputs())
        )
        check_contract(self.inputs, self.outputs, self.metadata, self.path)
        self._session: Any = session
        self._device = device

    def __repr__(self) -> str:
        closed = ", closed" if self._session is None else ""
        runtime = f"ONNX Runtime on {self._device}{closed}"
        return f"<OrtSession {self.path}: {self.metadata.describe()}; {runtime}>"

    def _load(self, profile: Path | None = None) -> Any:
        """A session of the file; `profile` is the start of the name of what it writes down."""
        ort = require("onnxruntime", "cpu")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors are raised too, and said once
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            return ort.InferenceSession(self._graph or self.path, options, **self._providers)
        except Exception as error:  # its errors share no base class
            raise ModelFileError(
                f"{self.path} is not a model ONNX Runtime can load: {_first_line(error)}"
            ) from None

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; `feeds` by name, as `inputs` describes them."""
        self._require_open()
        check_feeds(self.inputs, feeds)
        return self.evaluate(list(self.outputs), feeds)

    def evaluate(
        self, names: Sequence[str], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The outputs `names`, extra ones too; `feeds` may hold extra inputs and go unchecked."""
        try:
            values = self._require_open().run(list(names), dict(feeds))
        except Exception as error:  # its errors share no base class
            raise SessionError(
                f"ONNX Runtime failed on {self.path}: {_first_line(error)}"
            ) from None
        return dict(zip(names, values, strict=True))

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> "list[NodeTime]":
        """See `Profiled`: on the CPU, by a second session of the file, whose nodes write it down.

        Writing takes longer than most nodes, and the body of a Loop writes at every step. What it
        takes is told by a small input, which is also run without.
        """
        from condinst_infer.runtimes.ort_profile import node_times, runs_from_profile
        from condinst_infer.system.timing import time_interleaved

        known = self._require_open()
        check_feeds(self.inputs, feeds)
        small = _smallest(feeds, self.inputs)
        with TemporaryDirectory() as folder:
            session = self._load(Path(folder) / "run")
            for each, times in ((feeds, 1 + repeats), (small, 1 + _SMALL_RUNS)):
                for _ in range(times):
                    session.run(None, each)
            runs = runs_from_profile(Path(session.end_profiling()))
        quiet = time_interleaved({"": lambda: known.run(None, small)}, repeats=_SMALL_RUNS)[""]
        return node_times(runs[1 : 1 + repeats], runs[-_SMALL_RUNS:], min(quiet))

    def context(self) -> "OrtSession":
        """The object `enqueue` is called on; ONNX Runtime needs no other."""
        self._require_open()
        return self

    def release(self, context: "OrtSession") -> None:
        """Nothing to do."""

    def enqueue(
        self,
        feeds: "Mapping[str, DeviceArray]",
        outputs: "Mapping[str, DeviceArray]",
        stream: "Stream",
    ) -> None:
        """Run from and to device memory, on the stream this session was made with."""
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, feeds), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                index = stream.device.index
                bind(name, self._device, index, array.dtype, array.shape, array.pointer)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # its errors share no base class
            raise SessionError(
                f"ONNX Runtime failed on {self.path}: {_first_line(error)}"
            ) from None

    def _require_open(self) -> Any:
        if self._session is None:
            raise SessionError(f"the session of {self.path} is closed.")
        return self._session

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session = None


def _providers(ort: Any, device: str) -> list[str]:
    """Execution providers for `device`, the wanted one first."""
    if device not in _PROVIDERS:
        raise ConfigError(f"device is {device!r}; it must be one of {', '.join(_PROVIDERS)}.")
    if _PROVIDERS[device] not in ort.get_available_providers():
        raise SessionError(
            f"the installed onnxruntime {ort.__version__} has no {_PROVIDERS[device]}. Replace "
            "it: pip uninstall onnxruntime && pip install 'condinst-infer[gpu]'"
        )
    return list(dict.fromkeys([_PROVIDERS[device], _PROVIDERS["cpu"]]))


def _specs(values: Sequence[Any]) -> dict[str, TensorSpec]:
    specs = {}
    for value in values:
        dtype = _DTYPES.get(value.type, np.dtype(object))  # object: never part of the contract
        shape = tuple("?" if size is None else size for size in value.shape)
        specs[value.name] = TensorSpec(dtype, shape)
    return specs


def _smallest(
    feeds: Mapping[str, np.ndarray], inputs: Mapping[str, TensorSpec]
) -> dict[str, np.ndarray]:
    """The top left corner of `feeds`, as small as the model takes it."""
    images, sizes = feeds["images"], feeds["image_sizes"]
    rows, columns = (
        size if isinstance(fixed, int) else min(size, _SMALL)
        for size, fixed in zip(images.shape[1:3], inputs["images"].shape[1:3], strict=True)
    )
    corner = np.minimum(sizes, np.array([rows, columns], sizes.dtype))
    return {"images": np.ascontiguousarray(images[:, :rows, :columns]), "image_sizes": corner}


def _first_line(error: Exception) -> str:
    """The runtime's own reason, without its error code and the lines after the first."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
