"""Example: a frame that PyCUDA holds in device memory goes into the pipeline without a copy.

    pip install 'condinst-infer[gpu,pycuda]'
    python -m engines.examples.pycuda_frame detector.onnx street.jpg      (or model.engine)

Both work in the device's primary context. PyTorch and CuPy arrays are given in the same way.
"""

import argparse
from pathlib import Path

import numpy as np

import condinst_infer as ci
from condinst_infer.processing.preprocess import read_image


def main() -> None:
    """Print what is found in one image, and the mean mask probability computed by PyCUDA."""
    parser = argparse.ArgumentParser(description="a PyCUDA array through the pipeline")
    parser.add_argument("model", type=Path, help="an .engine, or an .onnx detector graph")
    parser.add_argument("image", type=Path)
    options = parser.parse_args()

    # makes the primary context current
    import pycuda.autoprimaryctx  # noqa: F401 # pyright: ignore[reportMissingImports]
    from pycuda import gpuarray  # pyright: ignore[reportMissingImports]

    frame = gpuarray.to_gpu(read_image(options.image))  # uint8 [H, W, 3], BGR
    with ci.load(options.model, device="cuda") as pipeline:
        result = pipeline(frame)
        for name, score, box in zip(result.names, result.scores, result.boxes, strict=True):
            print(f"{name:20}{score:6.2f}  {np.round(box).astype(int)}")
        if len(result) and result.on_device is not None:
            masks = result.on_device["masks"]  # probabilities of all slots; not copied
            view = gpuarray.GPUArray(masks.shape, masks.dtype, gpudata=masks.pointer)
            print(f"mean probability {gpuarray.sum(view).get() / view.size:.4f}")


if __name__ == "__main__":
    main()
