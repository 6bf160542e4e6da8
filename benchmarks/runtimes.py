"""Which runtime opens which file of the nuclei model, and how far its outputs differ.

    python -m benchmarks.runtimes --with openvino=/path/to/python --with node=/path/to/folder

Each runtime runs in an environment of its own: the Python that has it, or the folder that holds
node_modules with onnxruntime-node or onnxruntime-web. The reference is the plain file in the
ONNX Runtime of this environment.
"""

import argparse
import json
import re
import shutil
import subprocess
import threading
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from condinst_infer.contract.model_file import model_path
from condinst_infer.processing.geometry import place_image
from condinst_infer.processing.preprocess import read_image
from condinst_infer.profiling.environment import environment
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner
from condinst_infer.system.outputs import write_json
from condinst_infer.verification.compare import match_slots
from condinst_infer.verification.rewritten import write_standard_ops

RESULT = Path(__file__).parent / "results" / "runtimes" / "nuclei.json"
FILES = ("plain", "standard", "static")
NAMES = {
    "onnxruntime": "ONNX Runtime",
    "node": "ONNX Runtime in Node",
    "web": "ONNX Runtime in a browser (wasm)",
    "openvino": "OpenVINO",
    "mnn": "MNN",
    "tensorrt_rtx": "TensorRT-RTX",
}
LIMIT_S = 900
Arrays = dict[str, np.ndarray]

_PAGE = b"""<!doctype html><script type="module">
import * as ort from "/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { report } from "/runtime_outputs.mjs";
ort.env.wasm.numThreads = 1;
const read = async (name) => new Uint8Array(await (await fetch(`/feeds/${name}`)).arrayBuffer());
const write = (name, data) => fetch(`/feeds/${name}`, { method: "PUT", body: data });
await report(ort, "/model.onnx", read, write);
</script>"""
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


class _Site(BaseHTTPRequestHandler):
    """The page, the model, its inputs, and the packages; a PUT writes an output."""

    def __init__(self, *request: Any, model: Path, folder: Path, modules: Path) -> None:
        self._places = {"feeds": folder, "node_modules": modules / "node_modules"}
        self._model = model
        super().__init__(*request)

    def _file(self) -> Path:
        first, _, rest = self.path.lstrip("/").partition("/")
        if first in self._places:
            return self._places[first] / rest
        return self._model if first == "model.onnx" else Path(__file__).parent / first

    def do_GET(self) -> None:
        path = self._file()
        if self.path != "/" and not path.is_file():  # browsers ask for an icon
            self.send_error(404)
            return
        body = _PAGE if self.path == "/" else path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", _TYPES.get(path.suffix, "text/html"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self._file()
        part = path.with_suffix(".part")
        part.write_bytes(body)
        part.rename(path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of a request."""


def _in_browser(modules: Path, model: Path, folder: Path) -> None:
    """Open the page in headless Chromium until it has written its result."""
    site = partial(_Site, model=model, folder=folder, modules=modules)
    server = ThreadingHTTPServer(("127.0.0.1", 0), site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={folder / 'profile'}", f"http://127.0.0.1:{server.server_port}/"]
    browser = subprocess.Popen([*command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        waiting = threading.Event()
        for _ in range(LIMIT_S):
            if (folder / "result.json").exists() or waiting.wait(1):
                break
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()


def measure(runtime: str, where: Path, model: Path, feeds: Arrays, expected: Arrays) -> Any:
    """What `runtime` does with `model`: version, and differences from `expected` or the error."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        copy = Path(shutil.copy(model, folder / "model.onnx"))  # a converter writes beside it
        specs = {n: {"dtype": str(a.dtype), "shape": a.shape} for n, a in feeds.items()}
        write_json(folder / "feeds.json", specs)
        write_json(folder / "outputs.json", list(expected))
        for key, array in feeds.items():
            array.tofile(folder / f"{key}.bin")
        script = Path(__file__).with_name("runtime_outputs.py")
        if runtime == "web":
            _in_browser(where, copy, folder)
        else:
            command = [where, script, runtime, copy, folder]
            if runtime == "node":
                command = ["node", script.with_suffix(".mjs"), where, copy, folder]
            subprocess.run(list(map(str, command)), timeout=LIMIT_S, capture_output=True)
        if not (folder / "result.json").exists():
            return {"error": "the process ended without a result"}
        result = json.loads((folder / "result.json").read_text())
        if "error" in result:
            text = re.sub(r"\[\d+:\d+:\d+\] :\d+: ", "", result["error"])  # time and line of MNN
            return {"error": " ".join(text.replace(str(folder), "").split())}
        if not result["outputs"]:
            return {"version": result["version"], "builds": True}
        found = {
            key: np.fromfile(folder / f"{key}.bin", spec["dtype"]).reshape(spec["shape"])
            for key, spec in result["outputs"].items()
        }
    return {"version": result["version"], **differences(expected, found)}


def differences(expected: Arrays, found: Arrays) -> dict[str, Any]:
    """Counts, and the largest differences of matched instances; or that a name is missing."""
    if missing := sorted(set(expected) - set(found)):
        return {"error": f"there is no output {', '.join(missing)}"}
    pairs = match_slots(expected, found, 0)
    far: dict[str, Any] = {
        name: max(float(np.abs(expected[name][0, a] - found[name][0, b]).max()) for a, b in pairs)
        for name in ("boxes", "scores", "masks")
        if pairs
    }
    ious = [_mask_iou(expected["masks"][0, a], found["masks"][0, b]) for a, b in pairs]
    return {
        "instances": int(found["num_detections"][0]),
        "matched": len(pairs),
        "expected": int(expected["num_detections"][0]),
        "least_mask_iou": min(ious, default=0.0),
        **far,
    }


def _mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    inside = a > 0.5, b > 0.5
    return float((inside[0] & inside[1]).sum() / max(1, (inside[0] | inside[1]).sum()))


def _feeds(plain: OrtSession) -> Arrays:
    """The micrograph that ships, as network input."""
    image = read_image(model_path("nuclei").with_suffix(".jpg"))
    return CpuRunner(plain).feeds([place_image(image, plain.metadata.config.input, None)])


def main() -> None:
    """Measure every runtime given, and add the rows to the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with", dest="where", action="append", metavar="RUNTIME=PATH")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    plain = model_path("nuclei")
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    with TemporaryDirectory() as folder, closing(OrtSession(plain)) as session:
        feeds = _feeds(session)
        expected = session.run(feeds)
        files = {name: Path(folder) / f"{name}.onnx" for name in FILES}
        shutil.copy(plain, files["plain"])
        write_standard_ops(plain, files["standard"])
        _, *size, _ = feeds["images"].shape
        write_standard_ops(plain, files["static"], size=(size[0], size[1]), batch=1)
        for text in options.where:
            runtime, _, where = text.partition("=")
            # not resolved: the Python of an environment is a link to another one
            found = {n: measure(runtime, Path(where), f, feeds, expected) for n, f in files.items()}
            version = next((f["version"] for f in found.values() if "version" in f), "unknown")
            row = {"runtime": runtime, "version": version, "files": found}
            print(json.dumps(row))
            rows = [r for r in rows if (r["runtime"], r["version"]) != (runtime, version)]
            rows = sorted(
                [*rows, row], key=lambda r: (list(NAMES).index(r["runtime"]), r["version"])
            )
            write_json(options.output, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
