"""What a call through the C library costs over the same call in Python, at 512 x 512 pixels.

    python -m benchmarks.capi

Inside the Python call: a BGR frame in memory to boxes, scores, labels and masks, cut out at
native size. Around it: from the call in C to there, and from there to the result in C's memory,
masks as bits or bytes, freed. Both are times of the same calls, so that what else keeps the
machine busy falls on both. The nuclei model that ships, ONNX Runtime, float32. Builds the
library; needs a C compiler.
"""

import argparse
import ctypes
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np

import condinst_infer
from condinst_infer.cli.capi import build
from condinst_infer.pipeline import Pipeline, load
from condinst_infer.processing.preprocess import read_image
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.system.timing import summary, time_interleaved

DATA = Path(condinst_infer.__file__).parent / "data"
RESULT = Path(__file__).parent / "results" / "whole_image" / "capi.json"
SIDE, WARMUP = 512, 3
FORMATS = ("bits", "bytes", "rle")
TIMED = FORMATS[:2]  # RLE is `Instances.rle`, which costs the same in Python
CHANNELS = ("bgr", "rgb", "bgra", "rgba", "gray")


class Options(ctypes.Structure):
    """condinst_options."""

    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("device", "runtime", "precision")),
        *((name, ctypes.c_int32) for name in ("threads", "workers", "max_detections")),
        ("score_threshold", ctypes.c_float),
        ("python", ctypes.c_char_p),
    ]


class Image(ctypes.Structure):
    """condinst_image."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_ssize_t),
        ("channels", ctypes.c_int32),
    ]


class Mask(ctypes.Structure):
    """condinst_mask."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("x", "y", "width", "height")),
        ("stride", ctypes.c_size_t),
        ("rows", ctypes.c_void_p),
        ("rle", ctypes.c_char_p),
    ]


class Segment(ctypes.Structure):
    """condinst_segment."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("id", "is_thing", "instance")),
        ("box", ctypes.c_int32 * 4),
        ("score", ctypes.c_float),
        ("category_id", ctypes.c_int64),
        ("area", ctypes.c_int64),
        ("name", ctypes.c_char_p),
    ]


class Result(ctypes.Structure):
    """condinst_result."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "height", "mask_format")),
        ("count", ctypes.c_size_t),
        ("boxes", ctypes.POINTER(ctypes.c_float)),
        ("scores", ctypes.POINTER(ctypes.c_float)),
        ("labels", ctypes.POINTER(ctypes.c_int32)),
        ("names", ctypes.POINTER(ctypes.c_char_p)),
        ("masks", ctypes.POINTER(Mask)),
        ("ids", ctypes.POINTER(ctypes.c_int32)),
        ("segment_count", ctypes.c_size_t),
        ("segments", ctypes.POINTER(Segment)),
    ]


Pointer = Any  # to a Result


def image(frame: np.ndarray, channels: str = "bgr") -> Image:
    """`frame`, uint8 [H, W] or [H, W, C] with rows as far apart as they are, for the library."""
    height, width = frame.shape[:2]
    return Image(frame.ctypes.data, width, height, frame.strides[0], CHANNELS.index(channels))


class Library:
    """libcondinst in this process; a call that fails raises RuntimeError with its text."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))  # without the GIL, as a program in C would call
        self.c.condinst_last_error.restype = ctypes.c_char_p
        self.c.condinst_result_free.argtypes = [ctypes.c_void_p]
        self.c.condinst_close.argtypes = [ctypes.c_void_p]

    def checked(self, status: int) -> None:
        if status:
            raise RuntimeError(f"{status}: {self.c.condinst_last_error().decode()}")

    def open(self, path: Path, **options: Any) -> ctypes.c_void_p:
        model = ctypes.c_void_p()
        given = Options(**options)
        self.checked(
            self.c.condinst_open(str(path).encode(), ctypes.byref(given), ctypes.byref(model))
        )
        return model

    def find(
        self,
        model: ctypes.c_void_p,
        images: list[Image],
        mask_format: str,
        *,
        panoptic: bool = False,
    ) -> list[Pointer]:
        """Pointers to the results, for `free`."""
        n = len(images)
        results = (ctypes.POINTER(Result) * n)()
        function = self.c.condinst_panoptic if panoptic else self.c.condinst_find
        many, number = (Image * n)(*images), FORMATS.index(mask_format)
        self.checked(function(model, many, ctypes.c_size_t(n), number, results))
        return list(results)

    def free(self, result: Pointer) -> None:
        self.c.condinst_result_free(result)

    def close(self, model: ctypes.c_void_p) -> None:
        self.c.condinst_close(model)


class Timed(Pipeline):
    """A pipeline that notes how long its calls take."""

    calls_ms: list[float]

    def __call__(self, *args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = super().__call__(*args, **options)
        self.calls_ms.append((time.perf_counter() - start) * 1000)
        return result


def measure(folder: Path, path: Path, *, repeats: int, threads: int) -> dict[str, Any]:
    """Times of calls through C and, of the very same calls, of the Python call inside.

    The library is built in `folder`; `path` is a model file.
    """
    build(folder)
    library = Library(folder / "lib" / "libcondinst.so")
    frame = np.ascontiguousarray(read_image(DATA / "nuclei.jpg")[:SIDE, :SIDE])
    pixels = image(frame)

    def in_c(mask_format: str) -> None:
        library.free(library.find(model, [pixels], mask_format)[0])

    with closing(load(path, threads=threads)) as pipeline:
        count = len(pipeline(frame))
        pipeline.__class__ = Timed
        timed = cast(Timed, pipeline)
        timed.calls_ms = []
        with patch("condinst_infer.serving.c_api.load", lambda *args, **options: pipeline):
            model = library.open(path)
        functions = {name: lambda name=name: in_c(name) for name in TIMED}
        times = time_interleaved(functions, repeats=repeats, warmup=WARMUP)
        inside = timed.calls_ms[WARMUP * len(TIMED) :]
        library.close(model)
    formats = {}
    for turn, (name, whole) in enumerate(times.items()):
        python = inside[turn :: len(TIMED)]
        around = [a - b for a, b in zip(whole, python, strict=True)]
        formats[name] = {
            "call_ms": summary(whole),
            "python_ms": summary(python),
            "around_ms": summary(around),
            "overhead": summary(around)["p50"] / summary(python)["p50"],
        }
    return {
        "what": f"{path.name}, a frame of {SIDE}x{SIDE}, {count} instances",
        "threads": threads,
        "formats": formats,
        "environment": environment(),
    }


def main() -> None:
    """Measure, print one line, write the result."""
    parser = argparse.ArgumentParser(description="the C library against Python")
    parser.add_argument("--repeats", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default: 2)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder), DATA / "nuclei.onnx", repeats=options.repeats, threads=options.threads
        )
    write_result(options.output, result)
    print(result["what"])
    for name, found in result["formats"].items():
        python, around = (found[key]["p50"] for key in ("python_ms", "around_ms"))
        print(
            f"masks as {name}: {around:.3f} ms around {python:.1f} ms of the Python call, "
            f"{found['overhead']:.2%}"
        )


if __name__ == "__main__":
    main()
