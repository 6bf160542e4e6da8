"""export/README.md: its tables and formulas are what the package does."""

import re
from math import floor
from pathlib import Path

import numpy as np
import pytest

from condinst_infer.config.model import InputConfig, override
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import contract_inputs, contract_outputs
from condinst_infer.processing.geometry import placement
from condinst_infer.processing.panoptic_merge import semantic_labels
from condinst_infer.processing.paste import paste
from condinst_infer.processing.preprocess import resize
from tests.support.masks import assert_equal_labels, logits_of, smooth_masks

PAGE = (Path(__file__).parents[2] / "export" / "README.md").read_text()
F32 = np.float32


def rows_of(section: str) -> list[list[str]]:
    """Cells of the table rows in the section that begins with `section`."""
    text = re.split(r"^## ", PAGE[PAGE.index(f"## {section}") + 3 :], maxsplit=1, flags=re.M)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def test_the_sizes_in_the_table() -> None:
    table = rows_of("2. Sizes")
    assert len(table) == 3
    for image, sides, *nets, canvas in table:
        short, long = numbers(sides)
        for rule, net in zip(("short_first", "min_scale"), nets, strict=True):
            config = InputConfig(short_side=short, long_side=long, resize_rule=rule)
            expected = numbers(nets[0] if net == "the same" else net), numbers(canvas)
            assert placement(numbers(image), config, None) == expected  # pyright: ignore


@pytest.mark.parametrize(
    ("graph", "section"), [("full", "4. Run"), ("detector", "9. The detector")]
)
def test_the_tensors_in_the_tables(graph: str, section: str) -> None:
    """Names, types and numbers of axes, of a panoptic file."""
    config = override(preset("condinst_panoptic_r50"), nms="box")
    metadata = Metadata(config=config, graph=graph)
    specs = {**contract_inputs(metadata), **contract_outputs(metadata)}
    found = {}
    for cells in rows_of(section):
        name, kind, shape = cells[-4:-1] if graph == "detector" else cells[1:4]
        found[name.split("`")[1]] = kind, shape.count(",") + 1
    inputs = () if graph == "full" else contract_inputs(metadata)  # they stand in step 4 only
    assert set(found) == set(specs) - set(inputs)
    for name, (kind, axes) in found.items():
        assert axes == len(specs[name].shape), name
        assert kind.startswith(("as `", str(specs[name].dtype))), name


def shrunk_columns(image: np.ndarray, outputs: int) -> np.ndarray:
    """Step 3, shrinking, one axis."""
    inputs = image.shape[1]
    scale = inputs / outputs
    reach = max(1, scale)
    result = np.empty((len(image), outputs, 3), np.uint8)
    for i in range(outputs):
        centre = (i + 0.5) * scale
        reads = range(max(0, floor(centre - reach + 0.5)), min(inputs, floor(centre + reach + 0.5)))
        shares = [max(0, 1 - abs((j - centre + 0.5) * (1 / reach))) for j in reads]
        weights = [floor(share / sum(shares) * 2**22 + 0.5) for share in shares]
        values = sum(w * image[:, j].astype(np.int64) for w, j in zip(weights, reads, strict=True))
        result[:, i] = (values + 2**21) >> 22
    return result


def test_shrinking() -> None:
    random = np.random.default_rng(0)
    for height, width in ((40, 53), (71, 30)):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert (shrunk_columns(image, 17) == resize(image, (height, 17))).all()
        columns = shrunk_columns(image, 19).transpose(1, 0, 2)
        both = shrunk_columns(columns, 23).transpose(1, 0, 2).astype(int)
        assert np.abs(both - resize(image, (23, 19))).max() <= 1  # Pillow 13 may take rows first


def read_between(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Linear between cells along one axis, in float32."""
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    part = (places - low.astype(F32)).reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    return (1 - part) * values.take(low, axis) + part * values.take(high, axis)


def places_of(inputs: int, outputs: int) -> np.ndarray:
    """Half-pixel positions among `inputs`, as steps 5 and 8 have them."""
    place = (np.arange(outputs, dtype=F32) + F32(0.5)) * (F32(inputs) / F32(outputs)) - F32(0.5)
    return np.clip(place, F32(0), F32(inputs - 1))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_pasting(stride: int) -> None:
    net, size, cells = (13 * stride + 1, 20 * stride - 1), (47, 61), (16, 20)
    masks = smooth_masks(np.random.default_rng(stride), 5, *cells)
    different = 0
    for mask, crop in zip(
        masks, paste(masks, stride=stride, net_size=net, image_size=size), strict=True
    ):
        values = mask
        for axis in (1, 0):  # columns, then rows
            place = (places_of(net[axis], size[axis]) - F32(stride // 2)) / F32(stride)
            values = read_between(values, np.clip(place, F32(0), F32(cells[axis] - 1)), axis)
        differs = (values > 0.5) != crop.dense(size)
        assert np.abs(values[differs] - 0.5).max(initial=0) < 1e-6  # another order of four products
        different += differs.sum()
    assert different <= 2 and sum(map(np.count_nonzero, masks > 0.5)) > 100


def test_semantic_logits() -> None:
    net, size, cells = (51, 60), (64, 83), (16, 16)
    logits = logits_of("smooth", 4, cells)
    values = logits
    for axis in (2, 1):
        values = read_between(values, places_of(16, 64), axis)
    values = values[:, : net[0], : net[1]]
    for axis in (2, 1):
        values = read_between(values, places_of(net[axis - 1], size[axis - 1]), axis)
    assert_equal_labels(values.argmax(0), logits, net, size)
    found = semantic_labels(logits, net_size=net, image_size=size)
    assert (found != values.argmax(0)).mean() < 1e-3 and len(np.unique(found)) > 1
