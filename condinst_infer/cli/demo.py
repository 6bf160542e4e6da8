"""`condinst demo`: the bundled model on the bundled photograph."""

import time
from argparse import ArgumentParser
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from condinst_infer.cli.options import Verb, add_output, add_threads
from condinst_infer.pipeline import load
from condinst_infer.results.draw import write_image


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `condinst demo`."""

    output: Path
    threads: int | None


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `DemoOptions`."""
    add_output(parser, "FILE", "the overlay to write (default: %(default)s)", "condinst-demo.jpg")
    add_threads(parser)


def run(options: DemoOptions) -> int:
    """Find the nuclei, draw them, and print what was found."""
    data = resources.files("condinst_infer") / "data"
    with (
        resources.as_file(data / "nuclei.onnx") as model,
        resources.as_file(data / "nuclei.jpg") as photo,
        load(model, threads=options.threads) as pipeline,
    ):
        pipeline(photo)  # the first call also allocates
        start = time.perf_counter()
        result = pipeline(photo)
        milliseconds = 1000 * (time.perf_counter() - start)
        write_image(options.output, result.plot())
        print(f"model:     {pipeline.config.name}, {pipeline.metadata.precision}")
    height, width = result.image_size
    counts = ", ".join(f"{n} {name}" for name, n in Counter(result.names).most_common(6))
    print(f"image:     {width} x {height}, {milliseconds:.0f} ms from file to masks")
    print(f"instances: {len(result)}  {counts}")
    print(f"overlay:   {options.output}")
    return 0


VERB = Verb(
    "condinst demo -o overlay.jpg", add_options, DemoOptions, run, outputs={"output": "file"}
)
