"""JSON schemas of export/schema: they are up to date and describe what files hold."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import KEY, Metadata
from condinst_infer.contract.metadata_schema import metadata_schema, type_schema
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.trt.shape_profile import ShapeProfile
from condinst_infer.trt.sidecar import Gpu, Sidecar, sidecar_path
from condinst_infer.trt.sidecar_schema import sidecar_schema
from engines.emulator import Emulator
from tests.support.fake_tensorrt.device import built, install

SCHEMAS = Path(__file__).parents[2] / "export" / "schema"
Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("name", "schema", "module"),
    [
        ("metadata.json", metadata_schema(), "condinst_infer.contract.metadata_schema"),
        ("sidecar.json", sidecar_schema(), "condinst_infer.trt.sidecar_schema"),
    ],
)
def test_the_schema_in_export_is_this_one(name: str, schema: Any, module: str) -> None:
    assert json.loads((SCHEMAS / name).read_text()) == schema, f"run: python -m {module} > FILE"


def validate(data: Any, schema: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(data, schema)


def assert_invalid(data: Any, schema: Any, path: str) -> None:
    """One error, and the field it is about."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(data))
    assert [error.json_path for error in errors] == [path]


def metadata_of(file: Path) -> dict[str, Any]:
    return json.loads(OrtSession(file).props[KEY])


def test_metadata_of_the_shipped_file(demo_folder: Path) -> None:
    """It is older than some fields."""
    validate(metadata_of(demo_folder / "nuclei.onnx"), metadata_schema())


def test_metadata_of_a_panoptic_preset_with_every_field() -> None:
    config = preset("condinst_panoptic_r50")
    file = Metadata(config=config, graph="detector", precision="fp16", size=(64, 96), batch=2)
    validate(json.loads(file.to_props()[KEY]), metadata_schema())


@pytest.mark.slow
def test_metadata_of_a_panoptic_file(panoptic_onnx: Path) -> None:
    data = metadata_of(panoptic_onnx)
    assert data["config"]["panoptic"]["stuff_names"] == ["sky", "grass", "road"]
    validate(data, metadata_schema())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda data: data.update(contract=2), "$.contract"),
        (lambda data: data.update(graph="half"), "$.graph"),
        (lambda data: data.update(size=[640]), "$.size"),
        (lambda data: data.pop("size"), "$"),
        (lambda data: data.update(colour="bgr"), "$"),
        (lambda data: data["config"].pop("class_names"), "$.config"),
        (lambda data: data["config"]["mask"].update(mask_stride="2"), "$.config.mask.mask_stride"),
        (lambda data: data["config"]["detect"].update(nms="soft"), "$.config.detect.nms"),
        (lambda data: data["config"]["detect"].update(nms_iuo=0.6), "$.config.detect"),
    ],
)
def test_wrong_metadata_are_rejected(change: Change, path: str) -> None:
    data = json.loads(Metadata(config=preset("condinst_nano")).to_props()[KEY])
    change(data)
    assert_invalid(data, metadata_schema(), path)


def sidecar() -> Sidecar:
    """A sidecar whose engine was built without a GPU."""
    shape = (1, 64, 64)
    return Sidecar(
        onnx="model.onnx",
        onnx_sha256="0",
        props=Metadata(config=preset("condinst_nano")).to_props(),
        engine_sha256="0",
        engine_bytes=1,
        runtime="tensorrt_rtx",
        runtime_version="1.7.0",
        gpu=None,
        profile=ShapeProfile(shape, shape, shape),
        precision_built="fp32",
        plugin=("ClassNMS",),
        inspected="network",
        smoke_run="there is no GPU",
        scratch_bytes=None,
    )


def test_sidecars() -> None:
    validate(json.loads(sidecar().to_json()), sidecar_schema())
    known = replace(sidecar(), gpu=Gpu("NVIDIA L4", (8, 9), "12.2"), scratch_bytes=5)
    validate(json.loads(known.to_json()), sidecar_schema())


@pytest.mark.slow
def test_the_sidecar_of_an_engine(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, nano_onnx: Path, tmp_path: Path
) -> None:
    install(monkeypatch)
    engine = built(nano_onnx, tmp_path, min_shape=(1, 64, 64), max_shape=(3, 192, 192))
    validate(json.loads(sidecar_path(engine).read_text()), sidecar_schema())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda data: data.update(format=2), "$.format"),
        (lambda data: data["profile"].update(max=[1, 64]), "$.profile.max"),
        (lambda data: data["props"].pop("condinst"), "$.props"),
        (lambda data: data.update(gpu={"name": "NVIDIA L4"}), "$.gpu"),
        (lambda data: data.pop("sidecar_sha256"), "$"),
    ],
)
def test_wrong_sidecars_are_rejected(change: Change, path: str) -> None:
    data = json.loads(sidecar().to_json())
    change(data)
    assert_invalid(data, sidecar_schema(), path)


def test_a_field_of_another_kind_has_no_schema() -> None:
    with pytest.raises(TypeError, match="no schema for"):
        type_schema(list[int])
