"""A checkpoint on the GPU: PyTorch runs the detector in device memory, our kernels the rest."""

import ctypes
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condinst_infer.contract.metadata import Metadata
from condinst_infer.cuda.arrays import DeviceArray
from condinst_infer.cuda.driver import OUT_OF_MEMORY, DriverError
from condinst_infer.cuda.stream import Stream
from condinst_infer.errors import SessionError
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.deploy import in_precision

_SHORT = 0.25  # of the GPU's memory: with less of it free, PyTorch keeps nothing for later

_log = logging.getLogger(__name__)
# PyTorch records one graph at a time, during which nobody may empty its cache; and how its
# convolutions round is a setting of the whole process
_one_at_a_time = threading.Lock()


def cuda_place(index: int) -> torch.device:
    """The GPU `index` in PyTorch's words.

    Raises:
        SessionError: the installed PyTorch can't use it.
    """
    if torch.version.cuda is None or not torch.cuda.is_available():
        version = torch.version.cuda
        reason = "has no CUDA" if version is None else f"has CUDA {version} and finds no GPU for it"
        raise SessionError(
            f"the installed PyTorch {torch.__version__} {reason}. Install one for the CUDA of this "
            "GPU's driver (see: condinst doctor), or run what is exported: condinst export "
            "MODEL.safetensors -o MODEL.onnx"
        )
    if index >= torch.cuda.device_count():
        raise SessionError(f"PyTorch sees {torch.cuda.device_count()} GPUs, not a GPU {index}.")
    return torch.device("cuda", index)


def tensor_from_array(array: DeviceArray, place: torch.device) -> Tensor:
    """`array` as a tensor at `place`, not a copy."""
    if place.type == "cuda":
        return torch.as_tensor(array, device=place)
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.pointer)
    return torch.from_numpy(np.ndarray(array.shape, array.dtype, memoryview(raw)))


class TorchDetector:
    """The detector cut of a checkpoint as a `DeviceSession`; safe to call from several threads.

    From the second run of a shape on, it is a CUDA graph that PyTorch records and launches.

    Args:
        model: is copied, its batch norms are folded.
        place: of the weights: the GPU of the arrays, or the CPU for arrays in host memory.
        precision: "fp32" or "fp16", of weights and features.
        checkpoint_sha256: of the file it came from, for the metadata.
    """

    capturable = False  # PyTorch's memory may be in no graph but its own

    def __init__(
        self,
        model: CondInst,
        place: torch.device,
        *,
        precision: str = "fp32",
        checkpoint_sha256: str = "",
    ) -> None:
        self.place = place
        self.metadata = Metadata(
            config=model.config,
            graph="detector",
            precision=precision,
            checkpoint_sha256=checkpoint_sha256,
            versions={"torch": torch.__version__},
        )
        self.has_graphs = place.type == "cuda"  # False once one was refused
        self._contexts: set[TorchContext] = set()
        self._lock = threading.Lock()
        model = in_precision(model, precision)
        if precision == "fp16":  # the layout that tensor cores read
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with self.errors():
            self.model: CondInst | None = model.to(place)
            if place.type == "cuda":
                torch.cuda.synchronize(place)  # our streams don't wait for PyTorch's

    def __repr__(self) -> str:
        closed = ", closed" if self.model is None else ""
        return f"<TorchDetector: {self.metadata.describe()}; PyTorch on {self.place}{closed}>"

    def context(self) -> "TorchContext":
        """A context no other caller has, until `release`."""
        with self._lock:
            self.require_open()
            context = TorchContext(self)
            self._contexts.add(context)
            return context

    def release(self, context: "TorchContext") -> None:
        """Free the graph of `context`; where memory is short also what PyTorch keeps for later."""
        with self._lock:
            self._contexts.discard(context)
        context.forget()
        if self.place.type == "cuda":
            with suppress(RuntimeError):  # of earlier work, which has told its caller
                free, total = torch.cuda.mem_get_info(self.place)
                if free < _SHORT * total:
                    _empty_cache()

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self.model is not None:
            self.model = None
            if self.place.type == "cuda":
                with suppress(RuntimeError):  # of earlier work, which has told its caller
                    _empty_cache()

    def require_open(self) -> CondInst:
        """The network; SessionError if it was freed."""
        if self.model is None:
            raise SessionError("this session is closed.")
        return self.model

    def graph_memory(self, stream: int) -> Any:
        """Memory of the graphs on `stream`: one after the other, they all run in the same."""
        with self._lock:
            for context in self._contexts:
                if context.graph is not None and context.stream == stream:
                    return context.graph.pool()
        return None

    def refuse_graphs(self, error: Exception) -> None:
        """Go on without graphs, which are there for speed; the log says so once."""
        if self.has_graphs:
            _log.warning("%r runs without CUDA graphs, a little slower: %s", self, error)
        self.has_graphs = False

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Let PyTorch's errors be those of this package."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:  # the runner frees some, then tries again
            raise DriverError("PyTorch", OUT_OF_MEMORY, "out of memory") from error
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise SessionError(f"PyTorch failed on {self.place}: {reason}.") from error


class TorchContext:
    """The detector for one run at a time, best from and to the same arrays again and again."""

    def __init__(self, session: TorchDetector) -> None:
        self._session = session
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = 0  # handle of the stream the graph was recorded on
        self.forget()

    def forget(self) -> None:
        """Drop the graph and all tensors; a later run makes others."""
        self.graph = None
        self._bound: tuple[int, ...] = ()
        self._runs = 0
        self._images, self._image_sizes = torch.empty(0), torch.empty(0)
        self._outputs: dict[str, Tensor] = {}

    def enqueue(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        """Put a run on `stream`, from `feeds` to `outputs`, all by name.

        Raises:
            SessionError: closed, or PyTorch failed; DriverError if memory is short.
        """
        session = self._session
        session.require_open()
        with session.errors(), torch.inference_mode():
            with self._on(stream):
                self._bind(feeds, outputs, stream)
                self._image_sizes.copy_(tensor_from_array(feeds["image_sizes"], session.place))
            if self.graph is None and self._runs and session.has_graphs:
                self._record(stream)
            self._runs += 1
            if not self._launched(stream):
                with self._on(stream), _plain_float32():
                    self._run()

    def _on(self, stream: Stream) -> Any:
        """Let PyTorch work on `stream` in a block."""
        place = self._session.place
        if place.type == "cpu":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.ExternalStream(stream.handle, device=place))

    def _bind(
        self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream
    ) -> None:
        """Make tensors of the arrays, if they are others than in the last run.

        The sizes get a tensor of their own: those of each batch come in another array.
        """
        arrays = (feeds["images"], *outputs.values())
        bound = (stream.handle, *(array.pointer for array in arrays), *feeds["images"].shape)
        if bound == self._bound:
            return
        self.forget()
        place = self._session.place
        self._images = tensor_from_array(feeds["images"], place)
        sizes = feeds["image_sizes"].shape
        self._image_sizes = torch.empty(sizes, dtype=torch.int32, device=place)
        self._outputs = {name: tensor_from_array(array, place) for name, array in outputs.items()}
        self._bound = bound

    def _run(self) -> None:
        found = self._session.require_open().detector(self._images, self._image_sizes)
        for name, value in found.items():
            self._outputs[name].copy_(value)

    def _record(self, stream: Stream) -> None:
        """Make a graph of the run; after a plain one, which starts PyTorch's libraries."""
        try:
            pool = self._session.graph_memory(stream.handle)
            with self._on(stream), _plain_float32():
                graph = torch.cuda.CUDAGraph()
                on = torch.cuda.current_stream()
                # other threads may allocate meanwhile
                with torch.cuda.graph(graph, pool, on, capture_error_mode="thread_local"):
                    self._run()
        except Exception as error:  # the plain run shows what really fails
            self._session.refuse_graphs(error)
        else:
            self.graph, self.stream = graph, stream.handle

    def _launched(self, stream: Stream) -> bool:
        """Launch the graph; False if there is none, or none any more."""
        if self.graph is None:
            return False
        try:
            with self._on(stream):
                self.graph.replay()
        except RuntimeError as error:
            self.graph = None
            self._session.refuse_graphs(error)
            return False
        return True


@contextmanager
def _plain_float32() -> Iterator[None]:
    """Let convolutions multiply in float32, as on a CPU; nobody else records or runs meanwhile.

    By default cuDNN rounds factors to TF32, of 11 bits.
    """
    cudnn: Any = torch.backends.cudnn
    # newer PyTorch has a name for it per operation, and may refuse to read the old one
    owner, name, exact = cudnn, "allow_tf32", False
    if hasattr(cudnn, "conv"):
        owner, name, exact = cudnn.conv, "fp32_precision", "ieee"
    with _one_at_a_time:
        before = getattr(owner, name)
        setattr(owner, name, exact)
        try:
            yield
        finally:
            setattr(owner, name, before)


def _empty_cache() -> None:
    """Give memory that PyTorch does not use back to the GPU."""
    with _one_at_a_time:
        torch.cuda.empty_cache()
