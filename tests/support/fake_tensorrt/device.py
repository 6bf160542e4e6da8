"""The stand-in in the place of TensorRT, on the CUDA emulator in the place of a GPU."""

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from condinst_infer.cuda.stream import Stream
from condinst_infer.trt.build import engine_from_onnx
from condinst_infer.trt.sidecar import sidecar_path
from tests.support.fake_tensorrt import fake_tensorrt
from tests.support.fake_tensorrt.types import state


class Replayed:
    """What was put on a stream while it was captured, in the place of a CUDA graph.

    The emulator can't know of the stand-in's work; the order and the frozen addresses are kept.
    """

    launches = 0

    def __init__(self, trace: list[Any]) -> None:
        self._trace = trace

    def launch(self) -> None:
        Replayed.launches += 1
        for work in self._trace:
            work()

    def close(self) -> None:
        self._trace = []


def _captured(self: Stream, work: Any) -> Replayed:
    trace = state.traces[self.handle] = []
    try:
        work()
    finally:
        del state.traces[self.handle]
    return Replayed(trace)


def _traced(plain: Any) -> Any:
    def method(self: Stream, *args: Any) -> None:
        if self.handle in state.traces:
            state.traces[self.handle].append(partial(plain, self, *args))
        else:
            plain(self, *args)

    return method


def install(patch: pytest.MonkeyPatch, version: str = "11.4.0.106") -> ModuleType:
    """The stand-in, from now on what `import tensorrt` gives; our plugins can be registered."""
    module = fake_tensorrt(version)
    patch.setitem(sys.modules, "tensorrt", module)
    names = ("ClassNMS", "DynamicMaskHead")
    patch.setattr("condinst_infer.trt.plugin.register", lambda: state.plugins.update(names))
    patch.setattr(Stream, "graph", _captured)
    for name in ("upload", "download", "launch", "fill"):
        patch.setattr(Stream, name, _traced(getattr(Stream, name)))
    Replayed.launches = 0
    return module


def built(source: Path, folder: Path, **options: Any) -> Path:
    """The engine of `source` and its sidecar in `folder`."""
    path = folder / source.with_suffix(".engine").name
    made = engine_from_onnx(source, runtime="tensorrt", **options)
    path.write_bytes(made.engine)
    sidecar_path(path).write_text(made.sidecar.to_json())
    state.seen.clear()
    return path
