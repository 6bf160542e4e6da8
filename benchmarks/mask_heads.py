"""100 dynamic mask heads: the ONNX function body in ONNX Runtime, torch's grouped convolution.

    python -m benchmarks.mask_heads

One image, the papers' mask head (169 parameters), float32, mask features at stride 8, masks at
stride 4. Inside the time: from mask features and parameters in memory to probabilities in memory.
Needs the `export` extra.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from benchmarks.harness import component_parser
from condinst_infer.config.model import CondInstConfig
from condinst_infer.export.function_bodies import OPSET, functions
from condinst_infer.ops import aligned_bilinear, mask_logits_by_grouped_conv
from condinst_infer.ops.onnx_nodes import DOMAIN
from condinst_infer.profiling.environment import environment, write_result
from condinst_infer.system.timing import summary, time_interleaved

SIZES = ((64, 88), (100, 168))  # feature cells: inputs of 512x704 and 800x1344
RESULT = Path(__file__).parent / "results" / "mask_heads.json"


def feeds(count: int, size: tuple[int, int], config: CondInstConfig) -> dict[str, np.ndarray]:
    """Random inputs of one image's `count` mask heads on features [1, C, *size], by name."""
    random = np.random.default_rng(0)
    stride = config.mask_feature_stride
    pixels = np.array([size[1] * stride, size[0] * stride])  # width, height

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    return {
        "features": normal(1, config.mask.mask_channels, *size),
        "params": 0.5 * normal(1, count, config.num_params),
        "centres": random.uniform(0, pixels, (1, count, 2)).astype(np.float32),
        "sizes": random.choice(config.heads.sizes_of_interest, (1, count)).astype(np.float32),
        "count": np.array([count], dtype=np.int32),
    }


def body_session(config: CondInstConfig, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a model whose only node is `DynamicMaskHead` with the body of `config`."""
    body = next(f for f in functions(config) if f.name == "DynamicMaskHead")
    ranks = {"features": 4, "params": 3, "centres": 3, "sizes": 2, "count": 1}
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT32 if name == "count" else TensorProto.FLOAT, [None] * rank
        )
        for name, rank in ranks.items()
    ]
    output = helper.make_tensor_value_info("masks", TensorProto.FLOAT, [None] * 4)
    node = helper.make_node("DynamicMaskHead", list(ranks), ["masks"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "mask_heads", inputs, [output]),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        functions=[body],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure(
    size: tuple[int, int], *, count: int = 100, repeats: int = 15, threads: int = 2
) -> dict[str, Any]:
    """One result: times of both, their ratio, and the largest difference of a probability."""
    torch.set_num_threads(threads)
    config = CondInstConfig()
    arrays = feeds(count, size, config)
    tensors = [torch.from_numpy(arrays[n]) for n in ("features", "params", "centres", "sizes")]
    session = body_session(config, threads)

    def grouped() -> torch.Tensor:
        with torch.inference_mode():
            logits = mask_logits_by_grouped_conv(*tensors, stride=config.mask_feature_stride)
            return aligned_bilinear(logits, config.mask_factor).sigmoid()

    def body() -> np.ndarray:
        return np.asarray(session.run(["masks"], arrays)[0])

    difference = np.abs(body() - grouped().numpy()).max()
    # the threads of a runtime spin for a while before they sleep, and the other waits for the
    # cores: only the second of two runs in a row counts, on both sides
    calls = {"body first": body, "body": body, "grouped first": grouped, "grouped": grouped}
    times = time_interleaved(calls, repeats=repeats, warmup=2)
    summaries = {name: summary(times[name]) for name in ("body", "grouped")}
    return {
        "what": f"{count} mask heads on {size[0]}x{size[1]} features, ONNX function body in "
        "ONNX Runtime, float32",
        "against": "grouped convolution, aligned bilinear and sigmoid in torch",
        "threads": threads,
        "times_ms": summaries,
        "ratio": summaries["grouped"]["p50"] / summaries["body"]["p50"],
        "largest_difference": float(difference),
    }


def main() -> None:
    """Measure, print one line per size, write the result."""
    parser = component_parser(__doc__, RESULT, repeats=15)
    parser.add_argument("--count", type=int, default=100, help="instances (default: 100)")
    options = parser.parse_args()
    results = []
    for size in SIZES:
        result = measure(
            size, count=options.count, repeats=options.repeats, threads=options.threads
        )
        results.append(result)
        times = result["times_ms"]
        print(
            f"{size[0]}x{size[1]}: body {times['body']['p50']:.1f} ms, "
            f"grouped convolution {times['grouped']['p50']:.1f} ms, ratio {result['ratio']:.2f}"
        )
    write_result(options.output, {"results": results, "environment": environment()})


if __name__ == "__main__":
    main()
