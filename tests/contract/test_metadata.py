"""Metadata is read from an ONNX file without the onnx package."""

from pathlib import Path

import onnx
import pytest

from condinst_infer.contract.metadata import metadata_from_props, props_from_onnx
from condinst_infer.errors import ModelFileError


def test_props_are_those_the_onnx_package_reads(bright_model: Path, demo_folder: Path) -> None:
    for path in (bright_model, demo_folder / "nuclei.onnx"):
        props = props_from_onnx(path.read_bytes(), path)
        assert props == {p.key: p.value for p in onnx.load(path).metadata_props}
        assert metadata_from_props(props, path).config.name


def test_empty_values_and_other_files_without_metadata(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph)
    assert props_from_onnx(model.SerializeToString(), "a.onnx") == {}
    model.metadata_props.add(key="ü", value="")
    assert props_from_onnx(model.SerializeToString(), "a.onnx") == {"ü": ""}


@pytest.mark.parametrize("content", [b"hello, I am a text", b"\xff" * 40, b"\x72\x7f\x01", b"\x77"])
def test_what_is_no_onnx_is_refused(content: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"a\.onnx is not an ONNX file"):
        props_from_onnx(content, "a.onnx")


def test_a_truncated_file_is_refused_wherever_it_ends(bright_model: Path) -> None:
    data = bright_model.read_bytes()
    for size in range(1, len(data), 97):
        try:
            assert "condinst" not in props_from_onnx(data[:size], "a.onnx")
        except ModelFileError:
            continue
