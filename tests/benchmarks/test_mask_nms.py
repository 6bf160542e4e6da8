"""`benchmarks.mask_nms` measures box NMS and every kind of mask NMS, interleaved."""

from pathlib import Path
from shutil import copy

from benchmarks.mask_nms import compare


def test_the_benchmark_measures_every_kind(
    nano_onnx: Path, mask_nms_onnx: Path, tmp_path: Path
) -> None:
    labels = ("box", "greedy 20", "fast 20", "matrix 20")
    for label in labels:  # it would export them itself
        folder = tmp_path / label.replace(" ", "_")
        folder.mkdir()
        source = nano_onnx if label == "box" else mask_nms_onnx
        copy(source, folder / "condinst_nano.100.onnx")
    settings = {"repeats": 1, "threads": 1}
    result = compare("condinst_nano", tmp_path, candidates=(20,), **settings)
    assert tuple(result["rows"]) == labels
    medians = [row["times_ms"]["p50"] for row in result["rows"].values()]
    assert [row["over_box"] for row in result["rows"].values()] == [m / medians[0] for m in medians]
    assert all(row["instances"] > 3 for row in result["rows"].values())
