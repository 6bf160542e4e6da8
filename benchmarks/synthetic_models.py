"""Models of made-up weights that find as many instances as asked for in any image.

Exporting a large one takes some 20 seconds, so scripts share a folder of them (`--keep DIR`). What
lies there is used as it is: delete it after a change of the network or the exporter.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.trained_statistics import with_trained_statistics
from condinst_infer import checkpoint
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.condinst import build_condinst
from condinst_infer.quantization.agreement import feeds_of
from condinst_infer.quantization.qdq import Quantizer
from condinst_infer.system.outputs import atomic_file

FRAME = (480, 640)  # (height, width), a common size of COCO
MODELS = ("condinst_rt_r50_shtw", "condinst_r50")  # run on 512x704 and 800x1088 for such a frame
INSTANCES = 100


def frame(size: tuple[int, int] = FRAME) -> np.ndarray:
    """Squares of random colours, BGR uint8 [*size, 3]."""
    rows, columns = (-(-side // 8) for side in size)
    coarse = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[: size[0], : size[1]]


@contextmanager
def folder(keep: Path | None) -> Iterator[Path]:
    """`keep`, or a folder that is deleted at the end."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def checkpoint_file(name: str, into: Path, **changes: Any) -> Path:
    """Preset `name` with made-up weights, always the same; made unless `into` has it.

    Args:
        changes: config fields; a folder holds one variant of each preset.
    """
    path = into / f"{name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        fields = {"max_detections": INSTANCES, **changes}
        checkpoint.save(with_trained_statistics(build_condinst(preset(name, **fields))), path)
    return path


def onnx_file(name: str, into: Path, instances: int = INSTANCES, **changes: Any) -> Path:
    """`checkpoint_file` exported for up to `instances` of them; 0 finds none, in 100 slots."""
    path = into / f"{name}.{instances}.onnx"
    if not path.exists():
        source = checkpoint_file(name, into, **changes)
        fields = {"max_detections": instances} if instances else {"score_threshold": 0.999}
        fields = {"max_detections": INSTANCES, **changes, **fields}
        model = build_condinst(preset(name, **fields)).eval()
        model.load_state_dict(checkpoint.load(source).state_dict())
        with atomic_file(path) as part:
            digest = file_sha256(source)
            export_onnx(model, part, checkpoint_sha256=digest)
    return path


def int8_file(name: str, into: Path, **changes: Any) -> Path:
    """`onnx_file` in int8 for CPUs, calibrated on `frame()`."""
    path = into / f"{name}.{INSTANCES}.int8.onnx"
    if not path.exists():
        source = onnx_file(name, into, **changes)
        config = preset(name, **changes).input
        with atomic_file(path) as part:
            Quantizer(source, feeds_of([frame()], config, None), target="cpu").write(part)
    return path
