"""The scripts that time whole images: equal sides, honest ratios, whole result files."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    competitors,
    harness,
    instances,
    precisions,
    synthetic_models,
    throughput,
    whole_image,
)
from benchmarks.report import plots, tables
from condinst_infer import checkpoint, load
from condinst_infer.profiling.environment import environment
from condinst_infer.system import timing

NAME, FOUND = "condinst_nano", 20
CHANGES = {"short_side": 128, "long_side": 192, "max_detections": FOUND}  # of `nano_checkpoint`
ONCE: dict[str, Any] = {"repeats": 1, "threads": 1}


@pytest.fixture(scope="module")
def folder(
    nano_checkpoint: Path, nano_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What scripts would have made and kept; every count of instances is the same file."""
    folder = tmp_path_factory.mktemp("keep")
    shutil.copy(nano_checkpoint, folder / f"{NAME}.safetensors")
    for count in (0, 1, synthetic_models.INSTANCES):
        shutil.copy(nano_onnx, folder / f"{NAME}.{count}.onnx")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return whole_image.measure(NAME, folder, repeats=3, threads=1)


@pytest.fixture(scope="module")
def in_precisions(folder: Path) -> dict[str, Any]:
    pytest.importorskip("openvino")
    return precisions.measure(NAME, folder, **ONCE, **CHANGES)


@pytest.fixture(scope="module")
def curve(folder: Path) -> dict[str, Any]:
    counts = (0, 1, 100)
    sizes = instances.sizes(NAME, folder, images=((48, 64), (60, 50)), **ONCE)
    case = instances.curve(NAME, folder, counts=counts, **ONCE)
    return {"results": [case], "by_size": sizes, "environment": environment()}


def p50(times: Mapping[str, float]) -> float:
    assert times["count"] >= 1 and times["min"] > 0
    return times["p50"]


def test_the_usual_way_finds_what_our_pipeline_finds_in_torch(nano_checkpoint: Path) -> None:
    frame = synthetic_models.frame((90, 131))
    usual = whole_image.Usual(checkpoint.load(nano_checkpoint))(frame)
    with load(nano_checkpoint) as pipeline:
        ours = pipeline(frame)
    assert len(ours) == FOUND and usual["masks"].shape == (FOUND, 90, 131)
    np.testing.assert_allclose(usual["boxes"], ours.boxes, atol=1e-3)  # 1e-5 measured
    np.testing.assert_allclose(usual["scores"], ours.scores, atol=5e-6)  # 0 measured
    np.testing.assert_array_equal(usual["labels"], ours.labels)
    assert (usual["masks"] != ours.masks).mean() < 1e-4  # 0 measured


def test_both_sides_agree_and_the_ratio_is_that_of_the_medians(whole: dict[str, Any]) -> None:
    assert whole["agrees"] and whole["agreement"]["instances"] == [FOUND, FOUND]
    assert whole["canvas"] == [128, 192] and whole["image"] == [480, 640]
    times = whole["times_ms"]
    assert list(times) == ["ours", "torch"] and times["ours"]["count"] == 3
    assert whole["ratio"] == p50(times["torch"]) / p50(times["ours"])
    assert list(whole["clocks_ms"]) == ["end_to_end", "pipeline", "engine"]


def test_openvino_is_measured_in_float32_too(folder: Path) -> None:
    pytest.importorskip("openvino")
    case = whole_image.measure(NAME, folder, runtime="openvino", **ONCE)
    assert case["agrees"]
    assert (case["artefact"]["runtime"], case["artefact"]["precision"]) == ("OpenVINO", "fp32")


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Every function that is timed runs once and takes 1, 2, ... ms; here is what it returned."""
    results: dict[str, object] = {}

    def once(functions: harness.Functions, **_: int) -> dict[str, list[float]]:
        results.update({name: function() for name, function in functions.items()})
        return {name: [float(place)] for place, name in enumerate(functions, 1)}

    monkeypatch.setattr(timing, "time_interleaved", once)
    return results


def kinds(results: Mapping[str, object]) -> dict[str, str]:
    return {n: type(v).__name__ for n, v in results.items() if not n.endswith(", before")}


def test_each_clock_times_what_its_name_says(folder: Path, returned: dict[str, object]) -> None:
    whole_image.measure(NAME, folder, **ONCE)
    assert kinds(returned) == {
        "ours": "ndarray",
        "end_to_end": "Instances",
        "pipeline": "BatchOutputs",
        "engine": "dict",
        "torch": "dict",
    }
    returned.clear()
    (row,) = instances.sizes(NAME, folder, images=((48, 64),), **ONCE)["sizes"]
    assert list(kinds(returned).values()) == ["Instances", "dict"]
    assert (row["times_ms"]["p50"], row["engine_ms"]["p50"]) == (1, 2)


def test_each_clock_of_a_precision(folder: Path, returned: dict[str, object]) -> None:
    pytest.importorskip("openvino")
    rows = precisions.measure(NAME, folder, **ONCE, **CHANGES)["precisions"]
    assert list(kinds(returned).values()) == ["Instances", "dict"] * len(rows)
    assert [row["times_ms"]["p50"] for row in rows] == [2, 5, 8, 11, 14]
    assert [row["engine_ms"]["p50"] for row in rows] == [3, 6, 9, 12, 15]


def found(**changes: np.ndarray) -> dict[str, np.ndarray]:
    masks = np.zeros((2, 8, 9), bool)
    masks[0, :4], masks[1, 5:] = True, True
    boxes = np.array([[0, 0, 9, 4], [0, 5, 9, 8]], np.float32)
    return {"boxes": boxes, "labels": np.array([3, 5]), "masks": masks} | changes


def test_sides_agree_in_any_order_and_not_if_anything_differs() -> None:
    ours = found()
    swapped = {name: value[::-1] for name, value in ours.items()}
    assert whole_image.agrees(whole_image.agreement(ours, swapped), 2)
    assert not whole_image.agrees(whole_image.agreement(ours, ours), 3)
    one = {name: value[:1] for name, value in ours.items()}
    assert not whole_image.agrees(whole_image.agreement(one, ours), 1)
    none = {name: value[:0] for name, value in ours.items()}
    twice = {name: value[[0, 0]] for name, value in ours.items()}
    masks = ours["masks"].copy()
    masks[1, 4] = True
    others = [one, none, twice, found(labels=np.array([3, 4])), found(masks=masks)]
    others.append(found(boxes=ours["boxes"] + np.float32(0.1)))
    for other in others:
        assert not whole_image.agrees(whole_image.agreement(ours, other), 2)
        assert not whole_image.agrees(whole_image.agreement(other, ours), 2)


def test_results_are_written_unless_the_sides_disagree(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "whole_image.json"
    words = ["x", "--models", NAME, "--repeats", "1", "--keep", str(folder), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    monkeypatch.setattr(whole_image, "LEAST_IOU", 2)
    assert whole_image.main() == 1 and not output.exists()
    assert "disagree" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    assert whole_image.main() == 0
    result = json.loads(output.read_text())
    artefacts = [(case["model"], case["artefact"]["runtime"]) for case in result["results"]]
    assert artefacts == [(NAME, "ONNX Runtime"), (NAME, "OpenVINO")]
    assert result["environment"]["cpu"]
    assert f"ratio {result['results'][0]['ratio']:.2f}" in capsys.readouterr().out


def test_precisions_are_those_of_the_files_and_runtimes(in_precisions: dict[str, Any]) -> None:
    rows = in_precisions["precisions"]
    found = [(row["artefact"]["precision"], row["artefact"]["runtime"]) for row in rows]
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    assert found == [(precision, names[runtime]) for precision, runtime in precisions.ROWS]
    digests = [row["artefact"]["sha256"] for row in rows]
    assert len(set(digests[:3])) == len(set(digests[3:])) == 1 and len(set(digests)) == 2
    for row in rows:
        assert row["ratio"] == p50(rows[0]["times_ms"]) / p50(row["times_ms"])
        assert row["engine_ratio"] == p50(rows[0]["engine_ms"]) / p50(row["engine_ms"])
        assert row["instances"] == FOUND


def test_the_cost_of_instances_is_that_of_the_medians(curve: dict[str, Any]) -> None:
    case = curve["results"][0]
    times = [p50(row["times_ms"]) for row in case["curve"]]
    assert case["cost_of_100_over_1"] == times[2] / times[1] - 1
    assert [(row["instances"], row["slots"]) for row in case["curve"]] == [(FOUND, FOUND)] * 3
    rows = curve["by_size"]["sizes"]
    assert [row["image"] for row in rows] == [[48, 64], [60, 50]]
    assert [row["canvas"] for row in rows] == [[128, 192], [160, 128]]


def test_our_side_of_the_rivals(folder: Path) -> None:
    ours = competitors.ours(NAME, folder, synthetic_models.frame(), 1)
    masks = ours.masks()
    assert masks.shape == (FOUND, 480, 640) and masks.dtype == bool
    assert ours.canvas == (128, 192) and 1e6 < ours.parameters < 2e6


def test_tables_say_what_was_measured(
    whole: dict[str, Any],
    in_precisions: dict[str, Any],
    curve: dict[str, Any],
    bright_model: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    masks = np.zeros((100, *synthetic_models.FRAME), bool)
    side = competitors.Side("yolo", "package 1.0", "PyTorch", (480, 640), 2_000_000, lambda: masks)
    rival = competitors.measure([side], **ONCE)
    rates = throughput.measure(bright_model, photos / "a.png", images=2, repeats=1)
    timed = {"instances": 7, "times_ms": whole["times_ms"]["ours"]}
    timed |= {"engine_ms": whole["clocks_ms"]["engine"]}
    variants = {"box": timed | {"over_box": 1.0}, "greedy 300": timed | {"over_box": 2.345}}
    masked = {"model": NAME, "canvas": [128, 192], "threads": 1, "rows": variants}
    calls = dict.fromkeys(("call_ms", "python_ms", "around_ms"), timed["engine_ms"])
    called = {"what": "x", "threads": 1, "formats": {"bits": calls | {"overhead": 0.0123}}}
    where = {"environment": environment()}
    files = {
        "whole_image": {"results": [whole], **where},
        "precisions": {"results": [in_precisions], **where},
        "instances": curve,
        "rivals": rival | where,
        "throughput": {"results": [rates], **where},
        "mask_nms": {"results": [masked], **where},
        "capi": called | where,
    }
    missing = tables.parts(tmp_path)
    for name, result in files.items():
        assert missing[name] == f"Not measured yet: `python -m benchmarks.{name}`."
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    made = tables.parts(tmp_path)
    assert list(made) == list(files)
    for part in made.values():
        table = [line for line in part.partition("\n\n")[0].splitlines()]
        assert len({line.count("|") for line in table}) == 1 and len(table) >= 3
        assert environment()["cpu"] in part and "onnxruntime" in part and "1 threads" in part
    assert f"| {whole['ratio']:.2f}x |" in made["whole_image"]
    assert f"{FOUND} of {FOUND} |" in made["whole_image"]
    for row in in_precisions["precisions"]:
        name = f"{row['artefact']['precision']}, {row['artefact']['runtime']}"
        assert f"| {name} | {FOUND} |" in made["precisions"]
        assert f"| {row['ratio']:.2f}x |" in made["precisions"]
    cost = 100 * curve["results"][0]["cost_of_100_over_1"]
    assert f"| {cost:.1f} % |" in made["instances"] and "| 48x64 | 128x192 |" in made["instances"]
    for rate in rates["images_per_second"].values():
        assert f"| {rate:.2f} |" in made["throughput"]
    assert "| bits | " in made["capi"] and "| 1.23 % |" in made["capi"]
    assert "| greedy, 300 candidates | " in made["mask_nms"] and "| 2.35x |" in made["mask_nms"]
    assert "| yolo (package 1.0) | PyTorch | 2.0 M | 480x640 | 100 |" in made["rivals"]


def test_plots_show_the_results_and_are_the_same_each_time(
    curve: dict[str, Any], tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    plots.write(tmp_path, pictures)
    assert list(pictures.iterdir()) == []
    for name in ("whole_image", "bench"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole_image" / "instances.json").write_text(json.dumps(curve))
    model = {"name": NAME, "precision": "fp32", "runtime": "onnxruntime"}
    row = {"size": [48, 64], "instances": [7], "stages_ms": {"backbone": 60, "NMS": 40, "RLE": 9}}
    (tmp_path / "bench" / "a.json").write_text(json.dumps({"model": model, "rows": [row]}))
    texts = []
    for _ in range(2):
        plots.write(tmp_path, pictures)
        files = sorted(pictures.iterdir())
        assert [path.name for path in files] == ["instances.svg", "stages.svg"]
        texts.append([path.read_text() for path in files])
    assert texts[0] == texts[1]
    assert f"{NAME}, 128x192" in texts[0][0] and "instances in the image" in texts[0][0]
    assert "100 ms" in texts[0][1] and "backbone" in texts[0][1] and "RLE" not in texts[0][1]
