"""The sidecar of an engine, `model.engine.json`, and every check before an engine is loaded.

An engine is a program: TensorRT gets to see one only if its bytes are those that `condinst build`
wrote, for the library and the kind of GPU that are here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condinst_infer.config.bounds import largest
from condinst_infer.config.field_types import dataclass_from_json
from condinst_infer.contract.metadata import Metadata, metadata_from_props
from condinst_infer.errors import ConfigError, ModelFileError, shorten
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.outputs import atomic_files
from condinst_infer.system.paths import is_file
from condinst_infer.trt.shape_profile import ShapeProfile

FORMAT = 3  # of this file
DIGEST = "sidecar_sha256"


@dataclass(frozen=True)
class Gpu:
    """The GPU an engine was built on."""

    name: str
    compute_capability: tuple[int, int]
    cuda: str  # the newest its driver knows


@dataclass(frozen=True)
class Sidecar:
    """Everything known about one engine."""

    onnx: str  # file name
    onnx_sha256: str
    props: Mapping[str, str]  # the ONNX file's own metadata, as it is there
    engine_sha256: str
    engine_bytes: int
    runtime: str  # module, a key of LIBRARIES
    runtime_version: str
    gpu: Gpu | None  # None: built without one
    profile: ShapeProfile
    precision_built: str
    plugin: tuple[str, ...]  # nodes that are our kernels; the others are standard operations
    inspected: str  # where the last two were read: "engine", or "network" as it was parsed
    smoke_run: str  # "passed", or why it was not made
    scratch_bytes: int | None  # of device memory, for the largest shapes; None: not known
    format: int = FORMAT

    def metadata(self, path: Path) -> Metadata:
        """Metadata of the ONNX file; `path` is the engine."""
        return metadata_from_props(self.props, path)

    def lines(self) -> dict[str, str]:
        """Facts about the build for people, by name."""
        gpu = "no GPU; runs on all that tensorrt_rtx supports"
        if self.gpu is not None:
            major, minor = self.gpu.compute_capability
            gpu = f"{self.gpu.name}, compute capability {major}.{minor}, CUDA {self.gpu.cuda}"
        read = "the engine" if self.inspected == "engine" else "the parsed file, not the engine"
        return {
            "built from": f"{self.onnx}, SHA-256 {self.onnx_sha256}",
            "runtime": f"{self.runtime} {self.runtime_version}",
            "built on": gpu,
            "takes": str(self.profile),
            "precision": f"{self.precision_built} (read from {read})",
            "our kernels": f"{', '.join(self.plugin) or 'none'} (read from {read})",
            "memory": self._memory(),
            "smoke run": self.smoke_run,
        }

    def _memory(self) -> str:
        """The GPU memory of a loaded engine, as a sentence."""
        weights = f"{self.engine_bytes / 1e6:.1f} MB, its weights"
        if self.scratch_bytes is None:
            return f"{weights}; and scratch memory, not known before it is loaded on a GPU"
        scratch = f"{self.scratch_bytes / 1e6:.1f} MB"
        return f"{weights}; up to {scratch} of scratch memory for each call at a time"

    def rebuild(self, path: Path) -> str:
        """The command that makes the engine `path` again."""
        chosen = "" if self.runtime == "tensorrt" else f" --runtime {self.runtime}"
        return f"condinst build {path.with_name(self.onnx)} -o {path}{chosen}"

    def check_runtime(self, path: Path, installed: str) -> None:
        """ModelFileError if the engine `path` was built by another version than `installed`."""
        if installed != self.runtime_version:
            raise ModelFileError(
                f"{path} was built by {self.runtime} {self.runtime_version}, installed is "
                f"{installed}. Rebuild it: {self.rebuild(path)}"
            )

    def check_gpu(self, path: Path, capability: tuple[int, int]) -> None:
        """ModelFileError if the engine `path` can't run on a GPU of this compute capability.

        TensorRT-RTX compiles for the GPU when it loads an engine; its engines run on any.
        """
        built = self.gpu and self.gpu.compute_capability
        if self.runtime == "tensorrt" and built is not None and built != capability:
            raise ModelFileError(
                f"{path} was built for compute capability {built[0]}.{built[1]}, this GPU has "
                f"{capability[0]}.{capability[1]}. Rebuild it here: {self.rebuild(path)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """This as plain data for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """This as text with its own digest, which shows later tampering."""
        data = self.to_dict()
        return json.dumps({**data, DIGEST: _digest(data)}, indent=2) + "\n"


def sidecar_path(engine: Path) -> Path:
    """The file beside `engine`."""
    return engine.with_name(f"{engine.name}.json")


@contextmanager
def atomic_engine(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for an engine, whose sidecar is to be written too.

    On success both take their final names, the sidecar last: whatever interrupts that leaves a
    pair whose hashes differ, which is never loaded.

    Raises:
        InputError: the files can't be written.
    """
    with atomic_files(path, sidecar_path(path)) as (part, beside):
        written = sidecar_path(part)
        try:
            yield part
            written.replace(beside)
        finally:
            written.unlink(missing_ok=True)


def read(path: Path) -> tuple[Sidecar, bytes]:
    """The sidecar of the engine `path`, and the engine's bytes, which are what it describes.

    Raises:
        ModelFileError: one of the files is missing, damaged, changed, or of another contract.
    """
    again = f"Rebuild it: condinst build {path.with_suffix('.onnx')} -o {path}"
    if not is_file(path, ModelFileError):
        raise ModelFileError(f"{path} does not exist or is not a file. {again}")
    beside = sidecar_path(path)
    if not is_file(beside, ModelFileError):
        raise ModelFileError(f"{path} has no {beside.name} beside it. {again}")
    sidecar = _parse(beside, again)
    again = f"Rebuild it: {sidecar.rebuild(path)}"
    try:
        sidecar.metadata(path)
    except ModelFileError as error:
        raise ModelFileError(f"{error} {again}") from None
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}. {again}") from None
    if len(engine) != sidecar.engine_bytes:
        raise ModelFileError(
            f"{path} has {len(engine)} bytes, {beside.name} says {sidecar.engine_bytes}: it is "
            f"truncated or another engine. {again}"
        )
    if hashlib.sha256(engine).hexdigest() != sidecar.engine_sha256:
        raise ModelFileError(
            f"{path} is damaged or another engine: its SHA-256 is not the one in {beside.name}. "
            f"{again}"
        )
    return sidecar, engine


def _parse(beside: Path, again: str) -> Sidecar:
    try:
        data = parse_json(beside.read_bytes(), "it", ModelFileError)
    except OSError as error:
        raise ModelFileError(f"{beside} can't be read: {error.strerror}. {again}") from None
    except ModelFileError as error:
        raise ModelFileError(f"{beside} is damaged or not ours: {error} {again}") from None
    if not isinstance(data, dict) or not {DIGEST, "format"} <= data.keys():
        raise ModelFileError(f"{beside} is damaged or not ours. {again}")
    digest, found_format = data.pop(DIGEST), data["format"]
    if digest != _digest(data):
        raise ModelFileError(f"{beside} was changed after the build. {again}")
    if found_format != FORMAT:
        raise ModelFileError(f"{beside} is of another version of this package. {again}")
    try:
        sidecar = dataclass_from_json(data, Sidecar, "sidecar")
        _check_ranges(sidecar)
        return sidecar
    except ConfigError as error:
        raise ModelFileError(f"{beside} can't be read: {error} {again}") from None


def _check_ranges(sidecar: Sidecar) -> None:
    """ConfigError for a value that no build writes."""
    profile, name = sidecar.profile, sidecar.onnx
    shapes = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    for field, shape in shapes.items():
        if not all(1 <= side <= largest("side") for side in shape):
            raise ConfigError(f"profile.{field} is {list(shape)}; it must be sizes from 1.")
    if not profile.takes(profile.opt):
        raise ConfigError(f"the shapes of profile don't rise: {profile}.")
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > 255:
        raise ConfigError(f"onnx is {shorten(name)}; it must be the name of a file.")
    for field in ("engine_bytes", "scratch_bytes"):
        value = getattr(sidecar, field)
        if value is not None and value < 0:
            raise ConfigError(f"{field} is {value}; it must be a whole number >= 0.")


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
