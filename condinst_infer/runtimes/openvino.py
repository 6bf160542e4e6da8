"""OpenVINO session: the second runtime for CPUs, in fp32, bf16 or int8."""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from queue import LifoQueue
from typing import Any, NamedTuple

import numpy as np

from condinst_infer.config.validation import check_threads, check_workers
from condinst_infer.contract.metadata import Metadata, metadata_from_props, model_props
from condinst_infer.contract.session import NodeTime
from condinst_infer.contract.tensors import TensorSpec, check_contract, check_feeds
from condinst_infer.contract.weights_sha256 import check_onnx_weights
from condinst_infer.errors import ConfigError, ModelFileError, SessionError, require
from condinst_infer.system.paths import check_readable_file

PRECISIONS = ("fp32", "bf16", "int8")

_RUNS_IN = {"fp32": ("fp32", "bf16"), "int8": ("int8",)}  # by the precision of the file
_CONVOLUTIONS = ("Convolution", "GroupConvolution", "DeformableConvolution")


class _Part(NamedTuple):
    """A compiled part of the network, and the names of its outputs."""

    request: Any
    outputs: Sequence[str]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the part; its next run overwrites the outputs."""
        found = self.request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return {name: found[name] for name in self.outputs}


class OvSession:
    """An exported .onnx file in OpenVINO; `run` may be called from several threads at once.

    In bf16 the convolutions and what they need run in bf16; in int8, those of them that are not
    int8, if the CPU can. What follows the last convolution (scores, boxes, NMS, mask heads) stays
    float32 in every precision.

    Args:
        path: a file written by `condinst export`.
        precision: "fp32", "bf16" or "int8"; None is the file's own. A file of fp32 runs in bf16
            too, if the CPU can.
        threads: CPU threads of one `run`, at least 1; None lets OpenVINO take all cores.
        workers: how many runs go on at the same time, at least 1; others wait for one to end.

    Raises:
        ModelFileError: missing, not ONNX, not ours, or changed after export.
        SessionError: the file or the CPU can't give this precision.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        precision: str | None = None,
        threads: int | None = None,
        workers: int = 1,
    ) -> None:
        check_threads(threads)
        check_workers(workers)
        self.path = Path(path)
        check_readable_file(self.path, ModelFileError)
        require("openvino", "openvino")
        proto = _proto(self.path)
        props = model_props(proto)
        metadata = metadata_from_props(props, self.path)
        self.inputs = _specs(proto.graph.input)
        self.outputs = _specs(proto.graph.output)
        check_contract(self.inputs, self.outputs, metadata, self.path)
        check_onnx_weights(proto, self.path)
        precision = _precision(self.path, metadata, precision)
        self.metadata = replace(metadata, precision=precision)
        # pinned, the first thread of every session and process would sit on core 0
        self._settings: dict[str, Any] = {"NUM_STREAMS": workers, "ENABLE_CPU_PINNING": False}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads * workers
        models = self._compile(proto)
        self._idle: LifoQueue[list[_Part]] | None = LifoQueue()
        for _ in range(workers):
            self._idle.put(self._parts(models))

    def __repr__(self) -> str:
        closed = ", closed" if self._idle is None else ""
        return f"<OvSession {self.path}: {self.metadata.describe()}; OpenVINO on cpu{closed}>"

    def _compile(self, proto: Any, **settings: Any) -> list[Any]:
        """The convolutions and what follows them: the second takes what the first puts out.

        Two models, since OpenVINO has one precision for all of a model. In fp32 and int8 too: as
        one, it may give the masks a layout that takes longer than the mask heads.
        """
        import onnx.inliner
        import openvino

        try:
            # OpenVINO knows no functions; their bodies take their place
            inlined = onnx.inliner.inline_local_functions(proto)
            model = core().read_model(inlined.SerializeToString())
            # told in any case: the default is bf16 where the CPU has it
            hints = ("f32" if self.metadata.precision == "fp32" else self._half(), "f32")
            settings |= self._settings
            return [
                core().compile_model(part, "CPU", settings | {"INFERENCE_PRECISION_HINT": hint})
                for part, hint in zip(_split(openvino, model), hints, strict=True)
            ]
        except Exception as error:  # its errors share no base class
            raise ModelFileError(
                f"{self.path} is not a model OpenVINO can load: {_reason(error)}"
            ) from None

    def _half(self) -> str:
        """Precision of layers that are not int8, such as predictors, in an int8 file."""
        deformable = any(self.metadata.config.backbone.deform_stages)  # whose offsets need float32
        return "bf16" if "bf16" in cpu_precisions() and not deformable else "f32"

    def _parts(self, models: Sequence[Any]) -> list[_Part]:
        """Requests with memory of their own for compiled `models`."""
        return [
            _Part(
                model.create_infer_request(),
                [tensor.any_name for tensor in after.inputs] if after else list(self.outputs),
            )
            for model, after in zip_longest(models, models[1:])
        ]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, as new arrays; `feeds` by name, as `inputs` describes them."""
        idle = self._idle
        if idle is None:
            raise SessionError(f"the session of {self.path} is closed.")
        self._check(feeds)
        parts = idle.get()
        try:
            return {name: array.copy() for name, array in _run(parts, feeds).items()}
        except Exception as error:  # its errors share no base class
            raise SessionError(f"OpenVINO failed on {self.path}: {_reason(error)}") from None
        finally:
            idle.put(parts)

    def profile(self, feeds: Mapping[str, np.ndarray], repeats: int) -> list[NodeTime]:
        """See `Profiled`: by a second copy of the network, which adds up what each node takes."""
        self._check(feeds)
        parts = self._parts(self._compile(_proto(self.path), PERF_COUNT=True))
        _run(parts, feeds)
        first = _total_times(parts, 1)
        for _ in range(repeats):
            _run(parts, feeds)
        return [
            NodeTime(node.name, node.op, (node.ms - before.ms) / repeats)
            for node, before in zip(_total_times(parts, 1 + repeats), first, strict=True)
            if node.ms > 0  # the others are part of another one
        ]

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """SessionError on feeds that OpenVINO would fail on: it would fail on others after that."""
        check_feeds(self.inputs, feeds)
        shape, divisor = feeds["images"].shape, self.metadata.config.input.size_divisor
        if 0 in shape or shape[1] % divisor or shape[2] % divisor:
            raise SessionError(
                f"input 'images' is {list(shape)}; height and width must be multiples of "
                f"{divisor}, and none may be 0."
            )

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._idle = None


def _run(parts: Sequence[_Part], feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The outputs of the last part, which its next run overwrites."""
    for part in parts:
        feeds = part.run(feeds)
    return feeds


def _proto(path: Path) -> Any:
    """The ONNX model in a file."""
    onnx = require("onnx", "openvino")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's, which is not ours to import
        raise ModelFileError(f"{path} is not an ONNX file: {_reason(error)}") from None


def _specs(values: Iterable[Any]) -> dict[str, TensorSpec]:
    from onnx.helper import tensor_dtype_to_np_dtype

    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(
            side.dim_value if side.HasField("dim_value") else side.dim_param or "?"
            for side in tensor.shape.dim
        )
        specs[value.name] = TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), shape)
    return specs


def _precision(path: Path, metadata: Metadata, wanted: str | None) -> str:
    """Choose the precision; SessionError if the file or this CPU can't give it."""
    if wanted not in (None, *PRECISIONS):
        raise ConfigError(f"precision is {wanted!r}; it must be one of {', '.join(PRECISIONS)}.")
    wanted = wanted or metadata.precision
    if wanted not in _RUNS_IN.get(metadata.precision, ()):
        source = "int8" if wanted == "int8" else "fp32"
        raise SessionError(
            f"OpenVINO can't run {path}, an {metadata.precision} file, in {wanted}. Export one: "
            f"condinst export MODEL.safetensors -o MODEL.onnx --precision {source}"
        )
    if wanted == "bf16" and any(metadata.config.backbone.deform_stages):
        raise SessionError(
            f"{path} has deformable convolutions. OpenVINO would compute where they sample in bf16 "
            "too, which is too coarse; run it in fp32."
        )
    if wanted == "bf16" and "bf16" not in cpu_precisions():
        raise SessionError("this CPU can't compute in bf16; run the file in fp32.")
    return wanted


def _split(openvino: Any, model: Any) -> tuple[Any, Any]:
    """A model as two: the convolutions with all they need, and what follows them.

    Each input of the second has the name of an output of the first.
    """
    nodes = model.get_ordered_ops()
    front = _front(nodes)
    results, parameters = [], []
    for node in nodes:
        if node.get_name() not in front or node.get_type_name() == "Constant":
            continue  # a constant stands in both
        for output in node.outputs():
            targets = output.get_target_inputs()
            targets = [target for target in targets if target.get_node().get_name() not in front]
            if not targets:
                continue
            output.add_names({f"between/{len(results)}"})  # some have none
            results.append(openvino.opset13.result(output))
            parameter = openvino.opset13.parameter(
                output.get_partial_shape(), output.get_element_type()
            )
            parameter.output(0).set_names(output.get_names())
            parameters.append(parameter)
            for target in targets:
                target.replace_source_output(parameter.output(0))
    front_model = openvino.Model(results, model.get_parameters(), "front")
    return front_model, openvino.Model(model.get_results(), parameters, "tail")


def _front(nodes: Sequence[Any]) -> set[str]:
    """Names of the convolutions with their biases, of all they need, and of the inputs."""

    def kind(node: Any) -> str:
        return node.get_type_name()

    def sources(node: Any) -> list[Any]:
        return [tensor.get_source_output().get_node() for tensor in node.inputs()]

    front: set[str] = set()
    for node in reversed(nodes):
        users = [t.get_node() for output in node.outputs() for t in output.get_target_inputs()]
        convolves = kind(node) in _CONVOLUTIONS or (
            kind(node) == "Add" and any(kind(source) in _CONVOLUTIONS for source in sources(node))
        )
        needed = any(user.get_name() in front for user in users)
        if convolves or needed or kind(node) == "Parameter":
            front.add(node.get_name())
    for node in nodes:  # else whole tensors would be handed over for their shapes
        if kind(node) == "ShapeOf" and sources(node)[0].get_name() in front:
            front.add(node.get_name())
    return front


def _total_times(parts: Sequence[_Part], runs: int) -> list[NodeTime]:
    """Time of each node in all `runs` together; OpenVINO keeps the mean."""
    return [
        NodeTime(node.node_name, node.node_type, 1e3 * node.real_time.total_seconds() * runs)
        for part in parts
        for node in part.request.profiling_info
    ]


def _reason(error: Exception) -> str:
    """The runtime's own words in one line, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check "))]
    return " ".join(said).rstrip(".")


@functools.cache
def core() -> Any:
    """OpenVINO's Core, one for the life of the process.

    A Core gives the thread that first uses it another stack for signals, and takes that away when
    it ends. Of two that end in the wrong order the second leaves the thread with a stack that is
    gone, and the next signal that Python handles, such as Ctrl-C, kills the process.
    """
    openvino = require("openvino", "openvino")
    # The first call fills a table and may let another thread run meanwhile. If that one comes to
    # the same call, each waits for the other forever. So it happens here, before any worker runs.
    openvino.Type.f32.to_dtype()
    return openvino.Core()


def cpu_precisions() -> list[str]:
    """The entries of `PRECISIONS` that this CPU computes in."""
    found = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in PRECISIONS if name.upper() in found]
