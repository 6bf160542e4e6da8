"""The programs of export/examples, run as by a person who does not have this package."""

import os
import subprocess
from pathlib import Path

import cv2

from condinst_infer.contract.model_file import model_path
from condinst_infer.processing.preprocess import read_image

EXAMPLES = Path(__file__).parents[2] / "export/examples"


def run_without_package(*words: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in a folder where Python finds none of ours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def write_nuclei_png(folder: Path) -> Path:
    """Write the micrograph that ships as PNG, which every decoder reads alike."""
    path = folder / "nuclei.png"
    assert cv2.imwrite(str(path), read_image(model_path("nuclei").with_suffix(".jpg")))
    return path
