"""A stand-in for the `tensorrt` module: its engine is the ONNX file, run by ONNX Runtime.

Device memory is the host memory of the CUDA emulator, so addresses are read and written as TensorRT
would. Only what the package uses is here, under TensorRT's names; a test compares them with those
of the library that is installed.
"""

from importlib.machinery import ModuleSpec
from types import ModuleType

from tests.support.fake_tensorrt import builder, runtime, types
from tests.support.fake_tensorrt.types import state


def fake_tensorrt(version: str = "11.4.0.106") -> ModuleType:
    """The module as a new process finds it; `types.state` is what tests ask and tell it."""
    state.__init__()
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # PyTorch looks for libraries by their specs
    for part in (types, builder, runtime):
        names = [n for n, v in vars(part).items() if getattr(v, "__module__", "") == part.__name__]
        vars(module).update({name: vars(part)[name] for name in names if name != "State"})
    vars(module)["__version__"] = state.version = version
    return module
