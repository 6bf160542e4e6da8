"""Build a TensorRT engine from an exported .onnx file, and inspect the result."""

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from condinst_infer.contract.metadata import Metadata, metadata_from_props, props_from_onnx
from condinst_infer.contract.tensors import check_contract
from condinst_infer.contract.weights_sha256 import check_onnx_weights
from condinst_infer.cuda.driver import Device
from condinst_infer.cuda.kernels import MAX_CANDIDATES
from condinst_infer.errors import (
    CondInstError,
    ConfigError,
    InputError,
    ModelFileError,
    SessionError,
    require,
)
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import read_bytes
from condinst_infer.trt import plugin as plugins
from condinst_infer.trt.inspection import BuiltGraph, read_engine, read_network
from condinst_infer.trt.libraries import create, error_log, load_library, specs
from condinst_infer.trt.progress_monitor import BuildProgress, monitor
from condinst_infer.trt.shape_profile import Shape, ShapeProfile, shape_profile_for
from condinst_infer.trt.sidecar import Gpu, Sidecar

_NO_PLUGINS = (
    "the file is in standard operators, so NMS and mask heads run in TensorRT's own operations; "
    "build the plain file, exported without --standard-ops, to have our kernels"
)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that is not in a file yet."""

    engine: bytes
    sidecar: Sidecar
    runs_here: bool  # else `sidecar.smoke_run` says why not
    notes: tuple[str, ...]  # options that had no effect


def engine_from_onnx(
    path: Path,
    *,
    runtime: str | None = None,
    min_shape: Shape | None = None,
    opt_shape: Shape | None = None,
    max_shape: Shape | None = None,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    plugin: bool = True,
    progress: Callable[[float], object] = lambda share: None,
) -> BuiltEngine:
    """The engine of the exported file `path`, of the precision that file has.

    Args:
        runtime: "tensorrt" or "tensorrt_rtx"; None takes the first that is installed.
        min_shape, opt_shape, max_shape: smallest, fastest and largest (images, height, width);
            None are derived from the model's own image sizes. For dynamic files.
        workspace_mib: memory for one layer's scratch; None is all there is.
        timing_cache: file that keeps measured layers between builds, read and written.
        plugin: use our kernels where the runtime can.
        progress: called with the share that is done, 0 to 1, from another thread.

    Raises:
        ModelFileError: not ours, with weights that are not finite, or not what this runtime can
            build; its words with node names.
        ConfigError: shapes that are not for this file, or more candidates than our NMS takes.
        SessionError: runtime or GPU is missing, or did not do what the file says.
    """
    data = _content(path)
    props = props_from_onnx(data, path)
    metadata = metadata_from_props(props, path)
    check_onnx_weights(require("onnx", "tensorrt").load_model_from_string(data), path)
    profile = shape_profile_for(metadata, min_shape, opt_shape, max_shape)
    trt = load_library(runtime)
    gpu, why_not = _gpu()
    if gpu is None and trt.__name__ == "tensorrt":
        raise SessionError(
            f"TensorRT builds an engine on the GPU that is to run it, and {why_not}. For GeForce "
            "and workstation cards: --runtime tensorrt_rtx builds without one."
        )
    nodes = plugins.NODES[metadata.config.detect.nms]
    wanted = nodes if plugin and trt.__name__ == "tensorrt" and metadata.graph == "full" else ()
    notes = [_NO_PLUGINS] if wanted and metadata.standard_ops else []
    wanted = () if metadata.standard_ops else wanted
    if "ClassNMS" in wanted or metadata.graph == "detector":
        _check_candidates(metadata, path)
    if wanted:
        plugins.register()
    builder = _EngineBuilder(trt, data, path, metadata)
    found = read_network(trt, builder.network, nodes)
    _check(found, metadata, wanted, path)
    notes += builder.configure(profile, workspace_mib, timing_cache)
    engine = builder.run(progress, gpu)
    builder.write_timing_cache(timing_cache)
    if gpu is not None:
        found, why_not = read_engine(trt, engine, found)
        if why_not and trt.__name__ == "tensorrt":
            raise SessionError(f"TensorRT can't load the engine it just built: {why_not}.")
        _check(found, metadata, wanted, path)
    sidecar = Sidecar(
        onnx=path.name,
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        props=props,
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        engine_bytes=len(engine),
        runtime=trt.__name__,
        runtime_version=trt.__version__,
        gpu=gpu and Gpu(gpu.name, gpu.compute_capability, gpu.driver_version),
        profile=profile,
        precision_built=found.precision,
        plugin=found.plugin,
        inspected=found.source,
        smoke_run=f"not made: {why_not}" if why_not else "not made yet",
        scratch_bytes=found.scratch_bytes,
    )
    return BuiltEngine(engine, sidecar, not why_not, tuple(notes))


class _EngineBuilder:
    """A parsed network and the configuration of the build."""

    def __init__(self, trt: ModuleType, data: bytes, path: Path, metadata: Metadata) -> None:
        self._trt, self._path, self._metadata = trt, path, metadata
        self._said = error_log(trt)
        self._builder = create(trt, "Builder")
        # always on in 11; by its name, because the numbers moved
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        self.network = self._builder.create_network(0 if flag is None else 1 << int(flag))
        self._parser = trt.OnnxParser(self.network, self._said.logger)  # owns the weights
        if not self._parser.parse(data):
            errors = [self._parser.get_error(i) for i in range(self._parser.num_errors)]
            raise ModelFileError(
                f"{trt.__name__} {trt.__version__} can't take {path}: "
                + "; ".join(map(_error_text, errors))
            )
        ins = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        outs = [self.network.get_output(i) for i in range(self.network.num_outputs)]
        inputs, outputs = (
            specs(trt, [(t.name, t.dtype, tuple(t.shape)) for t in tensors])
            for tensors in (ins, outs)
        )
        check_contract(inputs, outputs, metadata, path)
        self._config = self._builder.create_builder_config()

    def configure(
        self, profile: ShapeProfile, workspace_mib: int | None, timing_cache: Path | None
    ) -> list[str]:
        """Set the options of the builder; returns a note on each that has no effect here."""
        trt, config = self._trt, self._config
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is what the file says
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspection
        if profile.min != profile.max:
            shapes = self._builder.create_optimization_profile()
            sides = (profile.min, profile.opt, profile.max)
            shapes.set_shape("images", *((*shape, 3) for shape in sides))
            shapes.set_shape("image_sizes", *((shape[0], 2) for shape in sides))
            if config.add_optimization_profile(shapes) < 0:
                reason = self._said.pop_first(default="it gives no reason")
                raise ConfigError(f"{trt.__name__} rejects the shapes {profile}: {reason}.")
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if timing_cache is None:
            return []
        if trt.__name__ == "tensorrt_rtx":
            return ["tensorrt_rtx measures nothing while it builds: --timing-cache has no effect"]
        try:
            known = timing_cache.read_bytes()
        except FileNotFoundError:
            known = b""
        except OSError as error:
            raise InputError(f"{timing_cache} can't be read: {error.strerror}.") from None
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, False):
            return []
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return [f"{timing_cache} is of another GPU or version and starts anew"]

    def run(self, report: Callable[[float], object], gpu: Device | None) -> bytes:
        """The engine; an interrupt stops the builder at its next step.

        It builds in a thread of its own: in the main thread, the bindings would swallow the
        interrupt when they call back.
        """
        progress = BuildProgress(report)
        self._monitor = monitor(self._trt, progress)  # has to outlive the build
        self._config.progress_monitor = self._monitor

        def work() -> Any:
            with nullcontext() if gpu is None else gpu.current():
                return self._builder.build_serialized_network(self.network, self._config)

        with ThreadPoolExecutor(1) as pool:
            try:
                engine = pool.submit(work).result()
            except KeyboardInterrupt:
                progress.stop()
                raise
        if engine is None:
            reason = self._said.pop_first(default="it gives no reason")
            raise SessionError(f"{self._trt.__name__} can't build {self._path}: {reason}.")
        return bytes(memoryview(engine))

    def write_timing_cache(self, timing_cache: Path | None) -> None:
        """Write the measured layers to the file, where there are some."""
        if timing_cache is not None and self._trt.__name__ != "tensorrt_rtx":
            measured = self._config.get_timing_cache().serialize()
            with atomic_file(timing_cache) as part:
                part.write_bytes(bytes(memoryview(measured)))


def _error_text(error: Any) -> str:
    """One error of the parser, with the node it is about."""
    inside = "".join(f" in {name}" for name in reversed(error.local_function_stack()))
    return f"node {error.node_name()} ({error.node_operator()}){inside}: {error.desc()}"


def _check_candidates(metadata: Metadata, path: Path) -> None:
    """ConfigError for too many candidates; TensorRT would only say that it can't build."""
    levels, topk = len(metadata.config.strides), metadata.config.detect.pre_nms_topk
    if levels * topk > MAX_CANDIDATES:
        instead = ", or build it so: --no-plugin" if metadata.graph == "full" else ""
        raise ConfigError(
            f"{path} has {levels * topk} candidates per image, pre_nms_topk {topk} on each of "
            f"{levels} levels; our NMS kernel takes {MAX_CANDIDATES}. Export it with a lower "
            f"pre_nms_topk{instead}."
        )


def _check(found: BuiltGraph, metadata: Metadata, plugins: Sequence[str], path: Path) -> None:
    """SessionError if the graph did not become what its file and the options say."""
    if found.precision != metadata.precision:
        raise SessionError(
            f"{path} is {metadata.precision}, but the {found.source} came out as "
            f"{found.precision or 'something without convolutions'}."
        )
    if missing := [name for name in plugins if name not in found.plugin]:
        raise SessionError(
            f"the {found.source} has standard operations in place of our kernels for "
            f"{' and '.join(missing)}. Export {path.name} again with this version, or build it "
            "so: --no-plugin"
        )
    if found.plugin and not plugins:
        raise SessionError(
            f"the {found.source} has our kernels for {' and '.join(found.plugin)}, because an "
            "earlier build of this process registered them. Build without them in a new process."
        )


def _gpu() -> tuple[Device | None, str]:
    """The first GPU, or None and the reason."""
    try:
        return Device(), ""
    except CondInstError as error:
        return None, re.split(r" \(|\. ", str(error))[0].rstrip(".")  # without what to do


def _content(path: Path) -> bytes:
    return read_bytes(path, ModelFileError)
