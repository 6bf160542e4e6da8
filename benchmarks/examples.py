"""Every program of export/examples on the nuclei model, beside the pipeline of this package.

    python -m benchmarks.examples

Each runs on the micrograph that ships, as PNG, and writes its instances, which are compared here.
It needs what the examples need: CMake, OpenCV for C++, Node, npm and Chromium. The C++ program and
the pipeline with OpenVINO take turns for the times.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np

import condinst_infer as ci
from condinst_infer.contract.model_file import model_path
from condinst_infer.processing.geometry import place_image
from condinst_infer.processing.preprocess import read_image
from condinst_infer.profiling.environment import environment
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.detector_cut import detector_from_full
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner
from condinst_infer.system.outputs import write_json
from condinst_infer.verification.rewritten import write_standard_ops
from tests.support.chromium import Chromium
from tests.support.example_instances import mask_from_runs
from tests.support.examples import EXAMPLES, run_without_package, write_nuclei_png
from tests.support.javascript_examples import install_example
from tests.support.waiting import eventually

RESULT = Path(__file__).parent / "results" / "examples" / "nuclei.json"
TURNS, FRAMES = 5, 5


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of a request."""


class Bench:
    """The files that the examples are run on, all in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, model_path("nuclei")
        self.picture = write_nuclei_png(folder)
        with ci.load(self.model) as pipeline:
            self.expected = pipeline(self.picture)
        self.standard, self.detector = folder / "standard.onnx", folder / "detector.onnx"
        write_standard_ops(self.model, self.standard)
        self.detector.write_bytes(detector_from_full(self.model) or b"")

    def run(self, *words: object, cwd: Path | None = None) -> str:
        """Standard error of a program that can't import this package; its instances are checked."""
        done = run_without_package(*words, cwd=cwd or self.folder)
        if done.returncode:
            raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")
        return done.stderr


def differences(found: list[dict[str, Any]], expected: Instances) -> dict[str, Any]:
    """How far the instances of an example are from the pipeline's, in their order."""
    if [one["label"] for one in found] != expected.labels.tolist():
        return {"instances": len(found), "expected": len(expected)}
    boxes = np.array([one["box"] for one in found], np.float32)
    scores = np.array([one["score"] for one in found], np.float32)
    masks = zip(found, expected.masks, strict=True)
    pixels = sum(int((mask_from_runs(a["segmentation"]) != b).sum()) for a, b in masks)
    return {
        "instances": len(found),
        "expected": len(expected),
        "boxes": float(np.abs(boxes - expected.boxes).max()),
        "scores": float(np.abs(scores - expected.scores).max()),
        "pixels": pixels,
        "of_pixels": expected.masks.size,
    }


def python(bench: Bench, output: Path) -> None:
    """Run onnxruntime_python.py."""
    script = EXAMPLES / "onnxruntime_python.py"
    bench.run(sys.executable, script, bench.model, bench.picture, "-o", output)


def tail(bench: Bench, output: Path) -> None:
    """Run tail.py on the outputs of the detector cut in ONNX Runtime."""
    session = OrtSession(bench.detector)
    image = read_image(bench.picture)
    feeds = CpuRunner(session).feeds([place_image(image, session.metadata.config.input, None)])
    found: Any = session.run(feeds)
    metadata = session.metadata.to_props()["condinst"]
    path = bench.folder / "outputs.npz"
    others: Any = {"original_sizes": [image.shape[:2]], "metadata": metadata}
    np.savez(path, image_sizes=feeds["image_sizes"], **others, **found)
    bench.run(sys.executable, EXAMPLES / "tail.py", path, "-o", output)


def build_cpp(bench: Bench) -> Path:
    """Build openvino_cpp as its CMakeLists.txt says."""
    from openvino.utils import get_cmake_path

    folder = bench.folder / "build"
    source, place = EXAMPLES / "openvino_cpp", f"OpenVINO_DIR={get_cmake_path()}"
    bench.run("cmake", "-S", source, "-B", folder, "-D", place)
    bench.run("cmake", "--build", folder)
    return folder / "condinst_openvino"


def node(bench: Bench, output: Path) -> None:
    """Run the program for Node."""
    folder = install_example("node", bench.folder / "javascript")
    bench.run("node", "segment.mjs", bench.model, bench.picture, "-o", output, cwd=folder)


def web(bench: Bench, output: Path) -> None:
    """Open the page in headless Chromium, give it the image, and save the instances."""
    folder = install_example("web", bench.folder / "page")
    shutil.copy(bench.model, folder / "model.onnx")
    handler = partial(_Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Chromium("chromium", bench.folder) as page:
            page.open(f"http://127.0.0.1:{server.server_port}/")
            page.choose_file("#image", bench.picture)
            status = "document.querySelector('#status').innerText"
            page.wait_for(f"/^\\d+ of \\d+ instances/.test({status})")
            page.evaluate("document.querySelector('#score').value = 0")
            page.evaluate("document.querySelector('#save').click()")
            saved = bench.folder / "instances.json"
            eventually(lambda: saved.exists() and saved.read_text().endswith("]"))
            saved.rename(output)
    finally:
        server.shutdown()


def times(bench: Bench, program: Path) -> dict[str, float]:
    """Milliseconds per frame, from pixels to masks: the C++ program and the pipeline in turns.

    The first frame of each turn is not counted: shapes are new to it.
    """
    image = read_image(bench.picture)
    found: dict[str, list[float]] = {"cpp": [], "cpp_detector": [], "python": []}
    with ci.load(bench.standard, runtime="openvino") as pipeline:
        for _ in range(TURNS):
            for name, model in (("cpp", bench.standard), ("cpp_detector", bench.detector)):
                said = bench.run(program, model, bench.picture, "--repeat", FRAMES + 1)
                found[name] += [float(ms) for ms in re.findall(r"([\d.]+) ms", said)[1:]]
            for k in range(FRAMES + 1):
                start = perf_counter()
                np.asarray(pipeline(image).masks)
                found["python"] += [1000 * (perf_counter() - start)] * (k > 0)
    return {name: median(ms) for name, ms in found.items()}


def main() -> None:
    """Run all examples, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        bench = Bench(Path(name))
        program = build_cpp(bench)
        runs: dict[str, Callable[[Bench, Path], object]] = {
            "onnxruntime_python.py": python,
            "tail.py": tail,
            "openvino_cpp, standard operators": lambda bench, output: bench.run(
                program, bench.standard, bench.picture, "-o", output
            ),
            "openvino_cpp, detector cut and tail.hpp": lambda bench, output: bench.run(
                program, bench.detector, bench.picture, "-o", output
            ),
            "node": node,
            "web, Chromium": web,
        }
        rows = []
        for example, run in runs.items():
            output = bench.folder / "found.json"
            run(bench, output)
            found = json.loads(output.read_text())
            rows.append({"example": example, **differences(found, bench.expected)})
            output.unlink()
            print(json.dumps(rows[-1]))
        result = {"environment": environment(), "rows": rows, "times_ms": times(bench, program)}
        print(json.dumps(result["times_ms"]))
    write_json(options.output, result)


if __name__ == "__main__":
    main()
