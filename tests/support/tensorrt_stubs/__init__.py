"""TensorRT's own Python bindings on stub libraries, in a process of their own."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
# the front-end package, which would fetch the libraries, is no more than this
FRONT_END = {
    "__init__.py": "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n",
    "plugin/__init__.py": "from tensorrt_bindings.plugin import *\n",
}


def bindings_version() -> str | None:
    """Version of the first tensorrt_bindings on the path; None if there is none."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        return None
    found = re.search(r'__version__ = "(.+)"', Path(spec.origin).read_text())
    return found and found[1]


def write_stubs(folder: Path) -> None:
    """Stub libraries for the installed bindings, and the package `tensorrt`, in `folder`."""
    version = bindings_version()
    assert version is not None
    major = version.partition(".")[0]
    for name in LIBRARIES:
        file = f"lib{name}.so.{major}"
        source = HERE / "nvinfer.cpp" if name == "nvinfer" else Path(os.devnull)
        options = [
            "-shared",
            "-fPIC",
            "-O1",
            f"-DMAJOR={major}",
            f"-Wl,-soname,{file}",
            "-x",
            "c++",
        ]
        subprocess.run(["g++", *options, str(source), "-o", str(folder / file)], check=True)
    for name, text in FRONT_END.items():
        path = folder / "tensorrt" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def built_by_host(folder: Path, nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What tests/support/tensorrt_stubs/host.py says of `nodes`, on the stubs in `folder`.

    Warnings are errors there, and everything is compiled anew, so that none went by before.
    """
    path = [str(folder), str(HERE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", f"pycache_prefix={folder}", str(HERE / "host.py")],
        input=json.dumps({"libraries": [str(p) for p in folder.glob("*.so.*")], "nodes": nodes}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
