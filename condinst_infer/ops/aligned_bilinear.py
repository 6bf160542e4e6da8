"""Upsampling that keeps cell centres aligned between strides."""

import torch
from torch import Tensor
from torch.nn import functional

from condinst_infer.ops.onnx_nodes import is_exporting


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """`x` [N, C, h, w] upsampled to [N, C, factor*h, factor*w].

    Output j is the linear interpolation at input coordinate `(j - factor // 2) / factor`, with the
    border cells repeated: cell i of stride s sits at pixel `s*i + s//2` on every stride.
    """
    if factor == 1:
        return x
    start, height, width = factor - factor // 2, x.shape[2] * factor, x.shape[3] * factor
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    if is_exporting():
        # asymmetric Resize by a constant factor is what every runtime has; torch has no such mode
        up = torch.onnx.ops.symbolic(
            "Resize",
            (padded, None, torch.tensor([1.0, 1.0, factor, factor])),
            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
            dtype=x.dtype,
            shape=(x.shape[0], x.shape[1], factor * (x.shape[2] + 2), factor * (x.shape[3] + 2)),
        )
    else:
        size = (factor * (x.shape[2] + 1) + 1, factor * (x.shape[3] + 1) + 1)
        up = functional.interpolate(padded, size, mode="bilinear", align_corners=True)
    return up[:, :, start : start + height, start : start + width]
