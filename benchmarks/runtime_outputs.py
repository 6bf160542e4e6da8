"""What one runtime makes of an .onnx file: run by `runtimes.py` in an environment of its own.

    python benchmarks/runtime_outputs.py RUNTIME FILE FOLDER

It needs numpy and the runtime, and nothing of this repository. FOLDER holds feeds.json (shape and
type of each input) and the inputs as NAME.bin; the outputs are written there in the same way.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def run_onnxruntime(path: Path, feeds: Arrays) -> tuple[str, Arrays]:
    """Version and outputs of ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found: Any = session.run(names, feeds)
    return onnxruntime.__version__, dict(zip(names, found, strict=True))


def run_openvino(path: Path, feeds: Arrays) -> tuple[str, Arrays]:
    """Version and outputs of OpenVINO in float32, by the name it calls an output."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    version = openvino.__version__.partition("-")[0]
    return version, {port.get_any_name(): array for port, array in found.items()}


def run_mnn(path: Path, feeds: Arrays) -> tuple[str, Arrays]:
    """Version and outputs of MNN, after its own converter."""
    MNN: Any = import_module("MNN")
    converted = path.with_suffix(".mnn")
    # the command `mnnconvert` would install a package and send a report to a server of MNN's
    convert = "import _tools, sys; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
    command = [sys.executable, "-c", convert, "-f", "ONNX"]
    command += ["--modelFile", str(path), "--MNNModel", str(converted), "--bizCode", "condinst"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not converted.exists():
        said = f"{done.stdout}\n{done.stderr}".splitlines()
        errors = [line for line in said if "rror" in line or "Not Support" in line]
        raise RuntimeError("; ".join(errors[:3]) or f"mnnconvert exits with {done.returncode}")
    names = json.loads((path.parent / "outputs.json").read_text())
    module = MNN.nn.load_module_from_file(str(converted), list(feeds), names)
    tensors = [MNN.expr.const(array.copy(), array.shape, MNN.expr.NCHW, _mnn_type(array, MNN))
               for array in feeds.values()]  # fmt: skip
    found = module.onForward(tensors)
    return MNN.version(), {n: np.array(v.read()) for n, v in zip(names, found, strict=True)}


def _mnn_type(array: np.ndarray, MNN: Any) -> Any:
    return {"uint8": MNN.expr.uint8, "int32": MNN.expr.int}[str(array.dtype)]


def build_tensorrt_rtx(path: Path, feeds: Arrays) -> tuple[str, Arrays]:
    """Version of TensorRT-RTX, which builds an engine; without a GPU nothing runs."""
    trt: Any = import_module("tensorrt_rtx")

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    shape = feeds["images"].shape
    if -1 in tuple(network.get_input(0).shape):
        profile = builder.create_optimization_profile()
        for name, array in feeds.items():
            profile.set_shape(name, array.shape, array.shape, array.shape)
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise RuntimeError(f"no engine for an input of {shape}")
    return trt.__version__, {}


RUNTIMES: dict[str, Callable[[Path, Arrays], tuple[str, Arrays]]] = {
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
    "mnn": run_mnn,
    "tensorrt_rtx": build_tensorrt_rtx,
}


def main() -> None:
    """Run the file, write its outputs and what they are; an error is written in their place."""
    runtime, path, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    feeds = {
        name: np.fromfile(folder / f"{name}.bin", spec["dtype"]).reshape(spec["shape"])
        for name, spec in json.loads((folder / "feeds.json").read_text()).items()
    }
    result: dict[str, Any] = {}
    try:
        version, outputs = RUNTIMES[runtime](path, feeds)
        for name, array in outputs.items():
            array.tofile(folder / f"{name}.bin")
        specs = {n: {"dtype": str(a.dtype), "shape": a.shape} for n, a in outputs.items()}
        result = {"version": version, "outputs": specs}
    except Exception as error:
        result = {"error": str(error)}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
