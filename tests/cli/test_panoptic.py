"""The ways to a panoptic segmentation: the network, its file, the pipeline and `predict`."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from condinst_infer import checkpoint, load
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, ModelFileError
from condinst_infer.export.onnx_export import export_onnx
from condinst_infer.model.semantic_branch import SemanticBranch, semantic_by_concatenation
from condinst_infer.pipeline import Pipeline
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.verification.compare import compare
from tests.support.command_line import Run, assert_refused


@pytest.fixture
def pictures(demo_folder: Path, tmp_path: Path) -> Path:
    """Parts of a photograph in two sizes; two of them have one name."""
    folder = tmp_path / "pictures"
    photo = cv2.imread(str(demo_folder / "nuclei.jpg"))
    assert photo is not None
    parts = {"7.png": photo[:90, :131], "b/7.jpg": photo[200:290, 300:431]}
    for name, part in (parts | {"9.png": photo[100:231, 200:260]}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), part)
    return folder


@pytest.fixture
def pipeline(panoptic_onnx: Path) -> Pipeline:
    return load(panoptic_onnx)


def test_the_branch_computes_what_the_paper_words() -> None:
    torch.manual_seed(0)
    branch = SemanticBranch(8, inputs=3, classes=5)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter)
    pyramid = [torch.randn(2, 8, 24 // 2**i, 16 // 2**i) for i in range(3)]
    with torch.no_grad():
        expected = semantic_by_concatenation(branch, pyramid)
        torch.testing.assert_close(branch(pyramid), expected, rtol=1e-5, atol=1e-5)
    assert branch(pyramid).shape == (2, 5, 24, 16)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"graph": "detector"}, {"precision": "fp16"}])
def test_a_file_puts_out_the_semantic_logits(
    options: dict[str, Any], panoptic_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(checkpoint.load(panoptic_checkpoint), path, **options)
    spec = OrtSession(path).outputs["semantic"]
    assert spec.shape == ("N", 4, "H/4", "W/4")
    assert spec.dtype == (np.float16 if "precision" in options else np.float32)
    rows = {row.stage: row for row in compare(panoptic_checkpoint, path).rows}
    assert rows["semantic"].ok


def test_a_file_without_the_logits_it_promises_is_refused(
    panoptic_onnx: Path, tmp_path: Path
) -> None:
    import onnx

    proto = onnx.load(panoptic_onnx)
    outputs = [output for output in proto.graph.output if output.name != "semantic"]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="output 'semantic'.* missing"):
        OrtSession(tmp_path / "model.onnx")


def test_all_images_of_a_list_have_the_result_of_a_call_of_their_own(
    pipeline: Pipeline, pictures: Path
) -> None:
    files = [pictures / "7.png", pictures / "9.png", pictures / "b" / "7.jpg"]
    together = pipeline.panoptic(files)
    for file, result in zip(files, together, strict=True):
        alone = pipeline.panoptic(file)
        np.testing.assert_array_equal(result.id_map, alone.id_map)
        assert result.segments == alone.segments and len(result.segments) > 1
        image = cv2.imread(str(file))
        assert image is not None and result.id_map.shape == image.shape[:2]
        assert {s.id for s in result.segments} == set(np.unique(result.id_map)) - {0}
        assert result.plot().shape == image.shape
    assert [len(result.instances) for result in together] == [
        len(pipeline(file, score_threshold=0.45)) for file in files
    ]


def test_every_threshold_counts(pipeline: Pipeline, pictures: Path) -> None:
    file = pictures / "7.png"
    usual = pipeline.panoptic(file, stuff_area_limit=0)
    scores = sorted(s.score for s in usual.segments if s.score is not None)
    assert len(scores) > 1
    fewer = pipeline.panoptic(file, instance_threshold=scores[-1])
    assert len(fewer.instances) == 1 and fewer.segments[0].score == scores[-1]
    kinds = [pipeline.panoptic(file, stuff_area_limit=n).segments for n in (0, 10**6)]
    assert any(not s.is_thing for s in kinds[0]) and all(s.is_thing for s in kinds[1])
    dropped = pipeline.panoptic(file, overlap_threshold=0.0)
    kept = pipeline.panoptic(file, overlap_threshold=1.0)
    count = [sum(s.is_thing for s in result.segments) for result in (dropped, usual, kept)]
    assert count[0] < count[2] and count[0] <= count[1] <= count[2]


def test_thresholds_and_models_that_can_not_be(pipeline: Pipeline, bright_model: Path) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("overlap_threshold", 1.5, "overlap_threshold is 1.5; it must be a number from 0 to 1"),
        ("stuff_area_limit", -1, "stuff_area_limit is -1; it must be a whole number >= 0"),
        ("instance_threshold", 0.1, "0.1 is below 0.2236"),
    ]
    for name, value, words in cases:
        with pytest.raises(ConfigError, match=words):
            pipeline.panoptic("missing.jpg", **{name: value})
    with (
        load(bright_model) as instances,
        pytest.raises(ConfigError, match="finds instances alone.* condinst presets"),
    ):
        instances.panoptic("missing.jpg")


def test_configurations_that_make_no_panoptic_model() -> None:
    stuff: dict[str, Any] = {"stuff_names": ("sky",), "stuff_ids": (200,)}
    levels: dict[str, Any] = {"neck_in_levels": (2, 3, 4, 5)}
    assert preset("condinst_nano", **stuff, **levels).is_panoptic
    assert not preset("condinst_nano").is_panoptic
    for changes, words in (
        (stuff, "semantic_levels .* must begin at P2"),
        ({**stuff, **levels, "stuff_ids": ()}, "as many entries"),
        ({**stuff, **levels, "stuff_ids": (1,)}, "must all differ"),
        ({**stuff, **levels, "semantic_levels": (3, 4)}, "must begin at P2"),
    ):
        with pytest.raises(ConfigError, match=words):
            preset("condinst_nano", **changes)
    panoptic = preset("condinst_panoptic_r50")
    assert len(panoptic.panoptic.stuff_names) == 53
    assert override(panoptic, stuff_area_limit=0).panoptic.stuff_area_limit == 0


def test_predict_writes_what_coco_reads(
    condinst: Run, panoptic_onnx: Path, pictures: Path, tmp_path: Path, pipeline: Pipeline
) -> None:
    out = tmp_path / "out"
    (pictures / "bad.png").write_text("no image")
    command = ("predict", panoptic_onnx, pictures, "-o", out, "--panoptic", "--workers", 2)
    status, text, err = condinst(*command, "--stuff-area-limit", 0)
    assert status == 1 and "bad.png" in err and "3 images, " in text and " segments" in text
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    pngs = ["panoptic/7-2.png", "panoptic/7.png", "panoptic/9.png"]
    assert files == ["7.png", "9.png", "b/7.jpg", "panoptic.json", *pngs]
    data = json.loads((out / "panoptic.json").read_text())
    assert [image["id"] for image in data["images"]] == [1, 2, 3]
    assert data["images"][1] == {"id": 2, "file_name": "9.png", "height": 131, "width": 60}
    kinds = {c["id"]: c["isthing"] for c in data["categories"]}
    assert kinds[201] == 0 and kinds[1] == 1 and len(kinds) == 83
    for row, name in zip(data["annotations"], ("7.png", "9.png", "b/7.jpg"), strict=True):
        pixels = cv2.imread(str(out / "panoptic" / row["file_name"]))
        assert pixels is not None
        ids = pixels.astype(int) @ [65536, 256, 1]  # blue, green, red
        expected = pipeline.panoptic(pictures / name, stuff_area_limit=0)
        np.testing.assert_array_equal(ids, expected.id_map)
        assert [s["id"] for s in row["segments_info"]] == [s.id for s in expected.segments]
    overlay = cv2.imread(str(out / "9.png"))
    np.testing.assert_array_equal(
        overlay, pipeline.panoptic(pictures / "9.png", stuff_area_limit=0).plot()
    )


def test_predict_without_files_of_its_own_reports_what_it_found(
    condinst: Run, panoptic_onnx: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", panoptic_onnx, pictures / "9.png", "-o", out, "--panoptic", "--json")
    status, text, _ = condinst(*command, "--no-overlays", "--format", "none")
    report = json.loads(text)["images"][0]
    assert status == 0 and not out.exists()
    assert report["png"] is report["overlay"] is None and report["segments"] >= report["things"]


def test_options_of_the_other_kind_are_refused(
    condinst: Run, panoptic_onnx: Path, bright_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", panoptic_onnx, pictures, "-o", out)
    wanted = "--classes can't be used here: every pixel counts; use --instance-threshold"
    assert_refused(condinst(*command, "--panoptic", "--classes", "person"), wanted)
    wanted = "--overlap-threshold can't be used here: it goes with --panoptic"
    assert_refused(condinst(*command, "--overlap-threshold", 0.3), wanted)
    command = ("predict", bright_model, pictures, "-o", out, "--panoptic")
    assert_refused(condinst(*command), "finds instances alone")
    assert not out.exists()


def test_bench_times_the_merging_too(
    condinst: Run, panoptic_onnx: Path, bright_model: Path
) -> None:
    for model, wanted in ((panoptic_onnx, True), (bright_model, False)):
        command = ("bench", model, "--size", "60x90", "--repeats", 1, "--json")
        status, text, _ = condinst(*command)
        clocks = json.loads(text)["rows"][0]["clocks_ms"]
        assert status == 0 and ("panoptic" in clocks) == wanted and "end_to_end" in clocks


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode
def test_predict_gives_the_segments_of_every_frame(
    condinst: Run, panoptic_onnx: Path, demo_folder: Path, tmp_path: Path
) -> None:
    photo = cv2.imread(str(demo_folder / "nuclei.jpg"))
    assert photo is not None
    path, out = tmp_path / "cells.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (130, 90))
    for number in range(3):
        writer.write(photo[10 * number : 10 * number + 90, :130])
    writer.release()
    status, text, err = condinst("predict", panoptic_onnx, path, "-o", out, "--panoptic")
    assert (status, err) == (0, "") and "3 frames" in text and "segments" in text
    assert cv2.VideoCapture(str(out / "cells.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    for line in map(json.loads, (out / "cells.jsonl").read_text().splitlines()):
        total = np.zeros((90, 130), int)
        assert len(line["segments"]) > 1
        for segment in line["segments"]:
            mask = coco_mask.decode(segment["segmentation"])
            assert mask.sum() == segment["area"] and segment["category_id"] > 0
            total += mask
        assert total.max() == 1  # segments don't overlap


@pytest.mark.slow
def test_info_names_the_stuff_and_export_takes_the_other_nms(
    condinst: Run, panoptic_checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "boxless.onnx"
    assert condinst("export", panoptic_checkpoint, "-o", path, "--nms", "mask")[0] == 0
    text = condinst("info", path)[1]
    assert "stuff:              sky, grass, road\n" in text and "by the masks of 300" in text
    with load(path) as boxless:
        result = boxless.panoptic(pictures / "7.png")
    assert {s.id for s in result.segments} == set(np.unique(result.id_map)) - {0}
    assert len(result.instances)
