"""Cases of the dynamic_mask_head kernels: every head, both sizes, every factor."""

from typing import Any

import numpy as np

from condinst_infer.config.model import mask_layers
from condinst_infer.cuda import kernels
from condinst_infer.cuda.stream import Stream
from condinst_infer.profiling.gpu.cases import FLOATS, Arrays, KernelCase, launched
from condinst_infer.profiling.gpu.kernel_costs import PAPER_HEAD
from condinst_infer.profiling.gpu.seeded import Seeded

_HEADS: list[dict[str, Any]] = [PAPER_HEAD | change for change in (
    {}, {"depth": 1}, {"depth": 4, "width": 16, "channels": 16}, {"coordinates": "absolute"},
    {"coordinates": "none", "width": 3, "channels": 5}, {"use_features": False, "depth": 2},
)]  # fmt: skip
# of float16: half a unit at 1 is 2.4e-4, so no float16 probability can be nearer
_LIMITS = {np.float32: 1e-5, np.float16: 2.5e-4}


def dynamic_mask_head_cases() -> list[KernelCase]:
    small = [(head, (2, 2, 9, 33), 1 << i % 3) for i, head in enumerate(_HEADS)]
    large = [(head, (3, 7, 37, 51), 4 >> i % 3) for i, head in enumerate(_HEADS)]
    large += [(PAPER_HEAD, (1, 100, 64, 88), 2), (PAPER_HEAD, (2, 100, 100, 168), 2)]
    cases = [(case, True) for case in small] + [(case, False) for case in large]
    found = [_case(*case, dtype, size) for case, size in cases for dtype in FLOATS]
    # TensorRT may place masks so that the rows of a cell can't be written at once
    shifted = [(PAPER_HEAD, (1, 1, 9, 33), 4, dtype, True) for dtype in FLOATS]
    return found + [_case(*case, offset=4) for case in shifted]


def head_inputs(n: int, k: int, h: int, w: int, **head: Any) -> Arrays:
    """features, params, centres, sizes and count in float32, exact in float16 too."""
    random = Seeded(k)
    sizes = 2 ** random.integers(6, 11, (n, k))
    return {
        "features": random.steps(-2, 2, (n, head["channels"], h, w)),
        "params": random.steps(-1, 1, (n, k, sum(o * i + o for o, i in mask_layers(**head)))),
        "centres": random.steps(0, 1, (n, k, 2)) * np.float32(8) * np.array([w, h], np.float32),
        "sizes": sizes.astype(np.float32),
        "count": ((np.arange(n) + k) % (k + 1)).astype(np.int32),  # K, then 0, 1, ...
    }


def _case(
    head: dict[str, Any],
    size: tuple[int, int, int, int],
    factor: int,
    dtype: Any,
    small: bool,
    offset: int = 0,
) -> KernelCase:
    (n, k, h, w), settings = size, {**head, "stride": 8, "factor": factor}

    def run(stream: Stream, inputs: Arrays) -> Arrays:
        launch = kernels.dynamic_mask_head(n, k, h, w, **settings, dtype=np.dtype(dtype))
        given = inputs | {name: inputs[name].astype(dtype) for name in ("features", "params")}
        outputs = [((n, k, factor * h, factor * w), dtype)]
        return {"masks": launched(stream, launch, given.values(), outputs, offset)[0]}

    def expected(inputs: Arrays) -> Arrays:
        import torch

        from condinst_infer import ops

        found = ops.dynamic_mask_head(*map(torch.from_numpy, inputs.values()), **settings)
        return {"masks": found.numpy()}

    of = ", ".join(f"{name} {value}" for name, value in head.items())
    return KernelCase(
        name=f"{n}x{k}x{h}x{w} to x{factor}, {of}" + f", {offset} bytes behind" * bool(offset),
        inputs=lambda: head_inputs(n, k, h, w, **head),
        run=run,
        expected=expected,
        limit=_LIMITS[dtype],
        dtype=dtype,
        small=small,
    )
