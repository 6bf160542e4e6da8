"""Our side of the scripts that time whole images: one model file on one frame."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from condinst_infer.contract.metadata import file_sha256
from condinst_infer.pipeline import Pipeline
from condinst_infer.processing.geometry import PlacedImage, placement
from condinst_infer.results.instances import Instances
from condinst_infer.runtimes.openvino import OvSession
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner, open_model

RUNTIMES = {OrtSession: "ONNX Runtime", OvSession: "OpenVINO"}


class Ours:
    """A pipeline on one BGR frame; its clocks are those of condinst_infer/profiling/benchmark.py.

    Args:
        path: an .onnx file of a full graph.
        threads: of the runtime and, for the whole process, of OpenCV.
        runtime, precision: as in `load`.
    """

    def __init__(
        self,
        path: Path,
        frame: np.ndarray,
        *,
        threads: int,
        runtime: str | None = None,
        precision: str | None = None,
    ) -> None:
        cv2.setNumThreads(threads)
        runner = open_model(path, None, threads, runtime=runtime, precision=precision)
        assert isinstance(runner, CpuRunner)
        metadata = runner.metadata
        size = (frame.shape[0], frame.shape[1])
        placed = PlacedImage(frame, *placement(size, metadata.config.input, metadata.size))
        self._pipeline, self._frame = Pipeline(runner), frame
        self.config, self.canvas = metadata.config, placed.canvas
        self.artefact = {
            "runtime": RUNTIMES[type(runner.session)],
            "precision": metadata.precision,
            "sha256": file_sha256(path),
        }
        self.engine = partial(runner.session.run, runner.feeds([placed]))
        self.to_network_masks = partial(runner.run, [placed])

    def end_to_end(self) -> Instances:
        """The frame's instances, masks cut out at native size."""
        return self._pipeline(self._frame)

    def dense(self) -> np.ndarray:
        """The same, and the masks as bool [K, H, W]."""
        return self.end_to_end().masks

    def close(self) -> None:
        """Free the model."""
        self._pipeline.close()
