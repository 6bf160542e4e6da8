"""`condinst build`: a TensorRT engine from an exported file."""

import argparse
import json
import re
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from tqdm import tqdm

from condinst_infer.cli.options import Verb, add_json, add_model, add_output, positive
from condinst_infer.contract.model_file import ModelFile, check_output
from condinst_infer.trt.build import BuiltEngine, engine_from_onnx
from condinst_infer.trt.shape_profile import Shape
from condinst_infer.trt.sidecar import atomic_engine, sidecar_path
from condinst_infer.verification.self_test import check, self_test_from_props

BAR_S = 2.0  # until a bar is shown on a terminal
LINE_S = 30.0  # between lines where there is none


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of `condinst build`."""

    model: Path
    output: Path
    runtime: str | None
    min: Shape | None
    opt: Shape | None
    max: Shape | None
    workspace: int | None
    timing_cache: Path | None
    no_plugin: bool
    json: bool


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `BuildOptions`."""
    add_model(parser, "a .onnx file of ours")
    add_output(parser, "FILE", "the .engine file to write")
    parser.add_argument(
        "--runtime",
        choices=("tensorrt", "tensorrt_rtx"),
        help="library that will run the engine (default: the one installed; tensorrt if both are)",
    )
    parser.add_argument(
        "--min",
        type=_shape,
        metavar="NxHxW",
        help="smallest input, images x height x width (default: 1x64x64)",
    )
    parser.add_argument(
        "--opt",
        type=_shape,
        metavar="NxHxW",
        help="input that the engine is tuned for (default: that of a photograph of 640x480)",
    )
    parser.add_argument(
        "--max",
        type=_shape,
        metavar="NxHxW",
        help="largest input (default: one image of the largest size the model resizes to)",
    )
    parser.add_argument(
        "--workspace",
        type=positive,
        metavar="MIB",
        help="largest scratch memory of a layer (default: no limit)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="read and update measured times of layers, so that the next build is faster "
        "(tensorrt only)",
    )
    parser.add_argument(
        "--no-plugin",
        action="store_true",
        help="run NMS and mask heads in TensorRT's own operations instead of our kernels",
    )
    add_json(parser)


def run(options: BuildOptions) -> int:
    """Write an engine and its sidecar, after a run of the engine where there is a GPU for it."""
    check_output(options.output, ModelFile.ENGINE)
    with atomic_engine(options.output) as part:
        with _shown_progress() as progress:
            built = engine_from_onnx(
                options.model,
                runtime=options.runtime,
                min_shape=options.min,
                opt_shape=options.opt,
                max_shape=options.max,
                workspace_mib=options.workspace,
                timing_cache=options.timing_cache,
                plugin=not options.no_plugin,
                progress=progress,
            )
        sidecar = built.sidecar
        part.write_bytes(built.engine)
        sidecar_path(part).write_text(sidecar.to_json())
        sidecar = replace(sidecar, smoke_run=_smoke_run(built, part))
        sidecar_path(part).write_text(sidecar.to_json())
    if options.json:
        print(json.dumps({**sidecar.to_dict(), "notes": built.notes}))
        return 0
    for note in built.notes:
        print(f"note: {note}")
    for name, value in sidecar.lines().items():
        print(f"{name + ':':16}{value}")
    print(f"-> {options.output}")
    return 0


@contextmanager
def _shown_progress() -> Iterator[Callable[[float], None]]:
    """Show the share that the yielded function was last called with: a bar, or lines on stderr.

    TensorRT may measure one layer for minutes, so the time goes on without a call.
    """
    shares, done, start = [0.0], threading.Event(), monotonic()
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"  # no estimate: steps differ too much
    bar = tqdm(
        total=100, desc="building", disable=None, delay=BAR_S, miniters=0, bar_format=bar_format
    )

    def show() -> None:
        while not done.wait(LINE_S if bar.disable else 0.5):
            percent = int(100 * shares[-1])
            if bar.disable:
                seconds = f"{monotonic() - start:.0f} s"
                print(f"building: {percent} %, {seconds}", file=sys.stderr, flush=True)
            else:
                bar.update(percent - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield shares.append
    finally:
        done.set()
        thread.join()
        bar.close()


def _smoke_run(built: BuiltEngine, part: Path) -> str:
    """Run the self-test of the file; ParityError if the engine computes something else."""
    if not built.runs_here:
        return built.sidecar.smoke_run
    self_test = self_test_from_props(built.sidecar.props, part)
    if self_test is None:
        return "not made: the file was exported without a self-test"
    if not built.sidecar.profile.takes(self_test.shape):
        size = "x".join(map(str, self_test.shape))
        return f"not made: the engine does not take the self-test's input of {size}"
    from condinst_infer.runtimes.tensorrt import TrtSession

    session = TrtSession(part)
    try:
        check(session, self_test)
    finally:
        session.close()
    return f"passed {self_test.proof}"


def _shape(text: str) -> Shape:
    """Parse (images, height, width) from "1x512x736"."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NxHxW, such as 1x512x736")
    return int(match[1]), int(match[2]), int(match[3])


VERB = Verb(
    "condinst build model.onnx -o model.engine --max 4x736x736\n\n"
    "The engine is as precise as the file was exported. TensorRT builds for the GPU it runs "
    "on;\nTensorRT-RTX builds without a GPU, for GeForce and workstation cards.\n"
    "What is known about the engine is written to model.engine.json beside it.",
    add_options,
    BuildOptions,
    run,
    inputs=("model",),
    outputs={"output": "file", "timing_cache": "file"},
)
