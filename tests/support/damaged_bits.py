"""Bits that flip, and weights that are no numbers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def flip(path: Path, position: int, bit: int = 3) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def spread(begin: int, end: int, count: int) -> Iterator[int]:
    """`count` positions from `begin` to before `end`, the first and the last among them."""
    yield from np.linspace(begin, end - 1, count).astype(int).tolist()


def write_with_weight(source: Path, path: Path, part: str, value: float) -> str:
    """Write the ONNX file `source` with one number of a weight replaced; the weight's name.

    Args:
        part: of the name; biases come first, since all outputs of a layer's channel read one.
    """
    proto = onnx.load(source)
    named = [t for t in proto.graph.initializer if part in t.name and len(t.dims)]
    tensor = next((t for t in named if t.name.endswith("bias")), named[0])
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return name
