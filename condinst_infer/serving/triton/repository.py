"""A model repository for Triton: the network, and a Python model that takes images."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.model_file import ModelFile
from condinst_infer.contract.tensors import (
    TensorSpec,
    contract_inputs,
    contract_outputs,
    output_shapes,
)
from condinst_infer.errors import ModelFileError, SessionError
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.serving.triton.model import INPUTS, INSTANCES, METADATA, NETWORK, PANOPTIC
from condinst_infer.system.files import native_sources
from condinst_infer.trt import sidecar

MAX_BATCH = 4  # images of an ONNX file of dynamic batch; what Triton itself takes where none is set
_TYPES = {
    np.dtype(np.uint8): "TYPE_UINT8",
    np.dtype(np.int32): "TYPE_INT32",
    np.dtype(np.float16): "TYPE_FP16",
    np.dtype(np.float32): "TYPE_FP32",
    np.dtype(object): "TYPE_STRING",
}


class _Network(NamedTuple):
    """Facts about a model file that Triton has to know."""

    backend: str
    file: str  # the name the backend looks for
    kind: str  # of the instances
    metadata: Metadata
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch: int  # 0: the batch is part of the shapes, and Triton joins no requests


def model_name(path: Path) -> str:
    """Name of the model in Triton, from the file `path`."""
    return re.sub(r"[^\w-]+", "_", path.stem)


def write_repository(folder: Path, name: str, model: Path) -> None:
    """Write the models `name` and `name`_network into `folder`.

    Args:
        folder: the model repository; it has neither yet.
        name: of the model that takes images.
        model: an .onnx file or an .engine of ours, which is copied.

    Raises:
        ModelFileError: the file is damaged, not ours, or none that Triton runs.
        SessionError: it does not hold the whole model.
    """
    network = _engine(model) if ModelFile.ENGINE.matches(model) else _onnx(model)
    if network.metadata.graph != "full":
        raise SessionError(
            f"{model} holds the {network.metadata.graph} cut, which stops before NMS; Triton needs "
            "the whole model. Export it: condinst export MODEL.safetensors -o MODEL.onnx"
        )
    inner = NETWORK.format(name)
    shutil.copyfile(model, _version(folder, inner) / network.file)
    (folder / inner / "config.pbtxt").write_text(_network_config(inner, network))
    step = _version(folder, name)
    shutil.copyfile(native_sources("triton") / "model.py", step / "model.py")
    (step / METADATA).write_text(json.dumps(network.metadata.to_props()))
    (folder / name / "config.pbtxt").write_text(_step_config(name, network))


def _version(folder: Path, name: str) -> Path:
    path = folder / name / "1"
    path.mkdir(parents=True)
    return path


def _onnx(path: Path) -> _Network:
    session = OrtSession(path)
    metadata = session.metadata
    return _Network(
        backend="onnxruntime",
        file="model.onnx",
        kind="KIND_AUTO",  # all GPUs, or the CPU where there is none
        metadata=metadata,
        inputs=session.inputs,
        outputs=session.outputs,
        max_batch=0 if metadata.batch else MAX_BATCH,
    )


def _engine(path: Path) -> _Network:
    beside, _ = sidecar.read(path)
    if beside.runtime != "tensorrt":
        raise ModelFileError(
            f"{path} is an engine of {beside.runtime}, Triton runs those of tensorrt. Build one: "
            f"condinst build {beside.onnx} -o {path} --runtime tensorrt"
        )
    metadata = beside.metadata(path)
    outputs = contract_outputs(metadata)
    fixed = output_shapes(metadata, metadata.batch or 1, metadata.size or (1, 1))
    return _Network(
        backend="tensorrt",
        file="model.plan",
        kind="KIND_GPU",
        metadata=metadata,
        inputs=contract_inputs(metadata),
        outputs={n: _fix_sides(spec, fixed[n], metadata) for n, spec in outputs.items()},
        max_batch=0 if metadata.batch else beside.profile.max[0],
    )


def _fix_sides(spec: TensorSpec, shape: tuple[int, ...], metadata: Metadata) -> TensorSpec:
    """`spec` with those sides of `shape` that a static file fixes."""

    def side(letter: int | str, size: int) -> int | str:
        static = metadata.batch if letter == "N" else metadata.size
        return size if static else letter

    return TensorSpec(spec.dtype, tuple(map(side, spec.shape, shape)))


def _network_config(name: str, network: _Network) -> str:
    batched = network.max_batch > 0
    joining = ["dynamic_batching { }"] if network.max_batch > 1 else []
    return _lines(
        f'name: "{name}"',
        f'backend: "{network.backend}"',
        f"max_batch_size: {network.max_batch}",
        *(_tensor("input", n, spec, batched) for n, spec in network.inputs.items()),
        *(_tensor("output", n, spec, batched) for n, spec in network.outputs.items()),
        f"instance_group {{ count: 1 kind: {network.kind} }}",
        *joining,
    )


def _step_config(name: str, network: _Network) -> str:
    """The config.pbtxt of the Python model: one image per request; the network batches.

    There are as many processes as the network takes images at once, and at least two, so that
    one prepares an image or puts masks together while the network works for another.
    """
    outputs = INSTANCES | (PANOPTIC if network.metadata.config.is_panoptic else {})
    return _lines(
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 0",
        *(_tensor("input", n, spec, False, " optional: true") for n, spec in INPUTS.items()),
        *(_tensor("output", n, spec, False) for n, spec in outputs.items()),
        f"instance_group {{ count: {max(2, network.max_batch)} kind: KIND_CPU }}",
    )


def _tensor(kind: str, name: str, spec: TensorSpec, batched: bool, more: str = "") -> str:
    """One line of a config; where Triton batches, it leaves out the first axis."""
    sides = [side if isinstance(side, int) else -1 for side in spec.shape[batched:]]
    if not sides:  # Triton knows no tensor of the batch axis alone
        sides, more = [1], " reshape { shape: [ ] }"
    dims = ", ".join(map(str, sides))
    return f'{kind} {{ name: "{name}" data_type: {_TYPES[spec.dtype]} dims: [ {dims} ]{more} }}'


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
