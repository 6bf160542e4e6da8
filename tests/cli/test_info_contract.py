"""`condinst info --contract`: the steps of export/README.md with the numbers of one file."""

import hashlib
from pathlib import Path

import pytest

from condinst_infer.cli.info_contract import contract_text
from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import Metadata
from condinst_infer.contract.tensors import TensorSpec, contract_outputs, output_shapes
from condinst_infer.trt.shape_profile import ShapeProfile
from condinst_infer.trt.sidecar import Sidecar, sidecar_path
from tests.support.bright_model import write_bright_model
from tests.support.command_line import Run, assert_refused

NANO = preset("condinst_nano", short_side=128, long_side=192, max_detections=20)


def steps(text: str) -> dict[str, str]:
    """Texts by their label, each on one line."""
    found: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        label = line[:12].strip() or label
        found[label] = f"{found.get(label, '')} {line[12:].strip()}".strip()
    return found


def test_the_shipped_file(condinst: Run) -> None:
    status, out, err = condinst("info", "nuclei", "--contract")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    found = steps(out)
    assert found["file"] == "nuclei.onnx: condinst_nano, 1 class, fp32, any batch, any size"
    assert found["size"].startswith("the shorter side becomes 640, or less where the longer one")
    assert found["canvas"] == "both sides rounded up to multiples of 32"
    assert found["example"] == "rows x columns 480 x 640 become 640 x 853 on 640 x 864"
    assert "uint8 [N, H, W, 3]" in found["inputs"] and "int32 [N, 2]" in found["inputs"]
    assert "masks float32 [N, 500, H/2, W/2]" in " ".join(found["outputs"].split())
    assert found["scores"] == "best first, from 0.2236 to 1; at most 500 instances"
    assert found["masks"].startswith("cell i lies at pixel 2 * i + 1 of the canvas;")
    assert found["classes"] == "0 nucleus (1)"
    assert "NMS" not in found and "panoptic" not in found


def test_a_static_file(condinst: Run, tmp_path: Path) -> None:
    model = write_bright_model(tmp_path / "a.onnx", size=(96, 64), batch=3, standard_ops=True)
    found = steps(condinst("info", model, "--contract")[1])
    assert found["canvas"] == "96 x 64; an image that is larger is scaled down to fit"
    assert found["example"] == "rows x columns 480 x 640 become 48 x 64 on 96 x 64"
    assert "images uint8 [3, 96, 64, 3]" in " ".join(found["inputs"].split())
    assert "standard operators" in found["file"]


@pytest.mark.parametrize("nms", ["box", "mask"])
@pytest.mark.parametrize("graph", ["full", "detector"])
def test_the_shapes_of_a_static_file_are_numbers(graph: str, nms: str) -> None:
    config = override(NANO, nms=nms, mask_nms_candidates=60)
    metadata = Metadata(config=config, graph=graph, precision="fp16", size=(128, 160), batch=2)
    outputs = " ".join(steps(contract_text(metadata, "a.onnx"))["outputs"].split())
    shapes = output_shapes(metadata, 2, (128, 160))
    for name, spec in contract_outputs(metadata).items():
        assert f"{name} {TensorSpec(spec.dtype, shapes[name])}" in outputs


def test_a_detector_graph() -> None:
    found = steps(contract_text(Metadata(config=NANO, graph="detector"), "a.onnx"))
    outputs = " ".join(found["outputs"].split())
    assert "candidate_boxes float32 [N, 3000, 4]" in outputs
    assert "params_map float32 [N, 169, A]" in outputs
    assert "mask_features float32 [N, 8, H/8, W/8]" in outputs
    assert found["candidates"].startswith("1000 for each level of strides 8, 16, 32; mask sizes")
    assert found["NMS"] == "within a class, above IoU 0.6; at most 20"
    assert found["mask head"].startswith("10 -> 8 -> 8 -> 1, 169 parameters: all weights, then")
    assert "relative coordinates, 8 features at stride 8" in found["mask head"]
    by_masks = override(NANO, nms="mask", mask_nms_candidates=60, coordinates="none")
    found = steps(contract_text(Metadata(config=by_masks, graph="detector"), "a.onnx"))
    assert "candidate_boxes" not in found["outputs"]
    assert found["NMS"].endswith("by the masks of the best 60 (greedy); at most 20")
    assert found["boxes"].startswith("the box around each pasted mask;")
    assert "inputs: 8 features at stride 8" in found["mask head"]


def test_a_panoptic_file() -> None:
    config = override(
        preset("condinst_panoptic_r50"), stuff_names=("sky", "grass"), stuff_ids=(201, 202)
    )
    found = steps(contract_text(Metadata(config=config), "a.onnx"))
    assert "semantic float32 [N, 3, H/4, W/4] logits" in " ".join(found["outputs"].split())
    assert found["stuff"] == "1 sky (201), 2 grass (202)"
    words = "instances from 0.45; dropped if they lose more than 0.4 of their area; stuff from 4096"
    assert found["panoptic"].startswith(words)
    assert found["classes"].startswith("0 person (1), 1 bicycle (2),")


def test_no_class_name_is_cut() -> None:
    text = contract_text(Metadata(config=preset("condinst_r50")), "a.onnx")
    classes = text[text.index("classes ") :].splitlines()
    assert len(classes) > 9 and "9 traffic light (10)" in text
    assert all(line.endswith("),") for line in classes[:-1]) and classes[-1].endswith(" (90)")


def test_an_engine(condinst: Run, tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"engine")
    beside = Sidecar(
        onnx="a.onnx",
        onnx_sha256="0",
        props=Metadata(config=NANO).to_props(),
        engine_sha256=hashlib.sha256(b"engine").hexdigest(),
        engine_bytes=6,
        runtime="tensorrt",
        runtime_version="11.4.0",
        gpu=None,
        profile=ShapeProfile((1, 64, 64), (1, 128, 192), (4, 192, 192)),
        precision_built="fp32",
        plugin=(),
        inspected="engine",
        smoke_run="passed",
        scratch_bytes=None,
    )
    sidecar_path(engine).write_text(beside.to_json())
    found = steps(condinst("info", engine, "--contract")[1])
    assert found["metadata"].startswith('a.engine.json, props["condinst"], contract 1')
    assert found["takes"].startswith("1x64x64 to 4x192x192, fastest at 1x128x192 (images x rows")
    assert "masks float32 [N, 20, H/4, W/4]" in " ".join(found["outputs"].split())


def test_what_has_no_contract(condinst: Run, demo_folder: Path) -> None:
    checkpoint = demo_folder / "nuclei.safetensors"
    assert_refused(
        condinst("info", checkpoint, "--contract"),
        *("is a checkpoint", "-o nuclei.onnx"),
    )
    assert_refused(condinst("info", "nuclei", "--contract", "--json"), "give it without --json")
