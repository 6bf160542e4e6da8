"""Write condinst_infer/data/demo.onnx: the nano network with weights made up from their names.

    python export/demo_model.py

The weights are the same on every machine. They are not trained: class scores are noise, and each
mask is a blob around its location whose border follows the noise of the mask features.
"""

import math
import zlib
from pathlib import Path

import numpy as np
import torch

from condinst_infer.config import override
from condinst_infer.export import export_onnx
from condinst_infer.model import CondInst
from condinst_infer.presets import preset
from condinst_infer.verify import verify_export

OUTPUT = Path(__file__).parents[1] / "condinst_infer" / "data" / "demo.onnx"
BLOB = 0.9  # radius of a mask in sizes of interest


def demo_model() -> CondInst:
    """The network that the demo runs, in evaluation mode."""
    # a low NMS threshold and large boxes spread the noise over the picture
    config = override(
        preset("condinst_nano"), name="condinst_nano_untrained", max_detections=20, nms_iou=0.05
    )
    model = CondInst(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
            elif tensor.dim() == 4:
                random = np.random.default_rng(zlib.crc32(name.encode()))
                noise = random.standard_normal(tensor.shape)
                tensor.copy_(torch.from_numpy(noise) * math.sqrt(2 / tensor[0].numel()))
        for level in (3, 4, 5):  # batch norms have no statistics yet, and maps grow without them
            getattr(model.neck, f"output{level}").conv.weight /= 30
        fcos = model.fcos
        fcos.class_logits.weight[4:] *= 0.2  # few classes, so that boxes suppress one another
        fcos.class_logits.bias.fill_(-3.0)
        fcos.box_regression.weight *= 0.3
        fcos.box_regression.bias.fill_(6.0)
        fcos.controller.weight *= 0.006
        fcos.controller.bias.copy_(_blob_params())
    return model.eval()


def _blob_params() -> torch.Tensor:
    """Mask head parameters that are positive near the location, bent by the mask features."""
    first, second, third = np.zeros((8, 10)), np.eye(8), np.zeros((1, 8))
    for unit, angle in enumerate(np.arange(8) * np.pi / 4):  # eight directions from the location
        first[unit, :2] = np.cos(angle), np.sin(angle)
        first[unit, 2 + unit] = 0.04
        third[0, unit] = -4.0
    biases = np.concatenate([np.zeros(16), [4.0 * 2.4 * BLOB]])
    rows = [first.ravel(), second.ravel(), third.ravel(), biases]
    return torch.from_numpy(np.concatenate(rows)).float()


def main() -> None:
    """Export, check in ONNX Runtime, keep."""
    model = demo_model()
    part = OUTPUT.with_name("demo.part.onnx")
    try:
        export_onnx(model, part, trained=False)
        print(verify_export(model, part))
        part.replace(OUTPUT)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
