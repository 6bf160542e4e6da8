"""`condinst export`, `import`, `info`, `presets` and `compare`."""

import json
import pickle
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import condinst_infer as ci
from condinst_infer.config import presets
from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.model_zoo import PUBLISHED
from condinst_infer.config.paper_tables import ABLATIONS, MODELS
from condinst_infer.errors import ParityError
from tests.support.bright_model import bright_config, write_bright_model
from tests.support.command_line import Run, assert_refused


def test_info_shows_what_an_onnx_file_holds(condinst: Run, tmp_path: Path) -> None:
    path = write_bright_model(
        tmp_path / "a.onnx", size=(96, 160), batch=2, checkpoint_sha256="ab" * 32
    )
    status, text, _ = condinst("info", path)
    assert status == 0
    for word in ("condinst_nano", "96, 160", "ab" * 32, "uint8 [2, 96, 160, 3]", "person"):
        assert word in text
    data = json.loads(condinst("info", path, "--json")[1])
    assert data["batch"] == 2 and data["graph"] == "full"
    assert data["config"]["detect"]["max_detections"] == 1
    assert data["bytes"] == path.stat().st_size and len(data["sha256"]) == 64


def write_safetensors(path: Path, metadata: dict[str, str]) -> Path:
    """A safetensors file of two small tensors."""
    spec = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    other = {"dtype": "F32", "shape": [], "data_offsets": [24, 28]}
    header = json.dumps({"__metadata__": metadata, "a": spec, "b": other}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(28))
    return path


def test_info_reads_a_checkpoint_from_its_header(condinst: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"condinst": bright_config().to_json()})
    data = json.loads(condinst("info", path, "--json")[1])
    assert (data["tensors"], data["parameters"]) == (2, 7)
    assert data["config"]["name"] == "condinst_nano"
    assert "parameters:         7" in condinst("info", path)[1]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not a safetensors"),
        (b"\xff" * 40, "not a safetensors"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "not a safetensors"),
        (struct.pack("<Q", 2) + b"{}", "not written by condinst-infer"),
        (struct.pack("<Q", 37) + b'{"__metadata__": {"condinst": "huh"}}', "not JSON"),
    ],
)
def test_info_refuses_what_is_no_checkpoint(
    condinst: Run, tmp_path: Path, content: bytes, word: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert_refused(condinst("info", path), word)


def test_presets_lists_each_model_once(condinst: Run) -> None:
    text = condinst("presets")[1]
    rows = json.loads(condinst("presets", "--json")[1])
    assert [row["preset"] for row in rows] == list(presets.preset_names())
    for row in rows:
        assert row["preset"] in text and row["paper"] in text
    row = next(row for row in rows if row["preset"] == "condinst_r101_dcn_bifpn_sem")
    assert (row["backbone"], row["neck"], row["P"]) == ("resnet101+dcn", "bifpn", 169)


def test_presets_lists_the_rows_of_the_papers(
    condinst: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = condinst("presets", "--table")[1]
    rows = json.loads(condinst("presets", "--table", "--json")[1])
    assert len(rows) == len(ABLATIONS) + len(MODELS)
    (row,) = [r for r in rows if (r["paper"], r["table"], r["row"]) == ("journal", "1a", "depth 2")]
    assert row == {
        "paper": "journal",
        "table": "1a",
        "row": "depth 2",
        "metric": "AP val2017",
        "reported": 35.5,
        "here": None,
        "condinst train": "condinst_r50 --set mask_head_depth=2",
    }
    for row in rows:
        assert row["condinst train"] in text and f"{row['reported']:.1f}" in text
    monkeypatch.setattr(
        "condinst_infer.config.paper_tables.MEASURED", {("journal", "1a", "depth 2"): 35.61}
    )
    (line,) = [
        i
        for i in condinst("presets", "--table")[1].splitlines()
        if i.split()[:4] == ["journal", "1a", "depth", "2"]
    ]
    assert line.split()[6:8] == ["35.5", "35.6"]


def test_presets_lists_what_others_have_published(condinst: Run) -> None:
    text = condinst("presets", "--published")[1]
    rows = json.loads(condinst("presets", "--published", "--json")[1])
    assert [row["name"] for row in rows] == list(PUBLISHED)
    assert {row["licence"] for row in rows if row["by"] == "mmdetection"} == {"Apache-2.0"}
    assert all("academic use only" in row["licence"] for row in rows if row["by"] == "AdelaiDet")
    for row in rows:
        assert row["name"] in text and f"{row['mask AP']:.1f}" in text
    assert condinst("presets", "--published", "--table")[0] == 2


@pytest.fixture
def fake_torch_side(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The modules that load torch replaced by recorders; `verdict` is what the check raises."""
    seen: dict[str, Any] = {"verdict": None, "warnings": ()}

    def export_onnx(model: Any, path: Path, **options: Any) -> None:
        path.write_text("graph")
        seen.update(options, config=model.config, part=path)

    def finish_export(model: Any, path: Path, *, on_stage: Callable[[str], object]) -> Any:
        on_stage("checking")
        assert path.read_text() == "graph"
        if seen["verdict"] is not None:
            raise seen["verdict"]
        path.write_text(path.read_text() + " with golden outputs")
        return Report(warnings=seen["warnings"])

    def model_of(*args: object) -> SimpleNamespace:
        seen["loaded"] = args
        return SimpleNamespace(config=presets.preset("condinst_nano"))

    def save(model: Any, path: Path) -> None:
        path.write_text(model.config.to_json())

    class Report(SimpleNamespace):
        ok = property(lambda self: seen["verdict"] is None)

        def __str__(self) -> str:
            return "boxes 0.5 pixels"

        def to_dict(self) -> dict[str, object]:
            return {"ok": self.ok}

    def compare(a: Path, b: Path, images: list[Path]) -> Report:
        seen["compared"] = (a, b, images)
        return Report()

    modules = {
        "checkpoint": SimpleNamespace(load=model_of, save=save, import_weights=model_of),
        "export.onnx_export": SimpleNamespace(export_onnx=export_onnx),
        "verification.check_export": SimpleNamespace(finish_export=finish_export),
        "verification.compare": SimpleNamespace(compare=compare),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"condinst_infer.{name}", module)
    monkeypatch.setattr(ci, "checkpoint", modules["checkpoint"], raising=False)
    monkeypatch.setattr("condinst_infer.cli.export.file_sha256", lambda path: "abc")
    return seen


def test_export_checks_the_file_before_it_gets_its_name(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    path = tmp_path / "new" / "model.onnx"
    options = ("--size", "512x736", "--batch", "2", "--max-detections", "7", "--precision", "fp16")
    status, text, err = condinst(
        "export", "a.safetensors", "-o", path, *options, "--score-threshold", "0.4"
    )
    assert status == 0 and "boxes 0.5 pixels" in text and text.endswith(f"-> {path}\n")
    assert re.fullmatch(r"checking \.\.\. \d+\.\d s\n", err)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert path.read_text() == "graph with golden outputs"
    seen = fake_torch_side
    assert (seen["size"], seen["batch"], seen["graph"]) == ((512, 736), 2, "full")
    assert (seen["precision"], seen["checkpoint_sha256"]) == ("fp16", "abc")
    config: CondInstConfig = seen["config"]
    assert config.detect.max_detections == 7
    assert config.reported_floor == pytest.approx(0.4)
    assert seen["part"].parent == path.parent and seen["part"] != path


def test_an_export_says_in_json_what_was_compared(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    fake_torch_side["warnings"] = ("nothing was found.",)
    path = tmp_path / "model.onnx"
    status, text, err = condinst("export", "a.safetensors", "-o", path, "--json")
    assert status == 0 and json.loads(text) == {"output": str(path), "check": {"ok": True}}
    assert err.endswith("condinst: warning: nothing was found.\n")


def test_an_export_that_differs_leaves_no_file(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("an older export")
    fake_torch_side["verdict"] = ParityError("boxes differ by 3 pixels.")
    status, out, err = condinst("export", "a.safetensors", "-o", path)
    assert (status, out) == (1, "")
    assert err.splitlines()[-2:] == ["checking ...", "condinst: boxes differ by 3 pixels."]
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "an older export"


def test_an_export_out_of_range_is_refused(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    command = ("export", "a.safetensors", "-o", tmp_path / "model.onnx")
    assert_refused(condinst(*command, "--score-threshold", "1.5"), "--score-threshold is 1.5")
    assert_refused(condinst(*command, "--max-detections", "513"), "at most 512")
    assert list(tmp_path.iterdir()) == []


def test_import_takes_config_and_class_names(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"part {i}" for i in range(80)) + "\n\n", encoding="utf-8")
    path = tmp_path / "model.safetensors"
    command = ("import", "a.pth", "--config", "a.yaml", "--classes", names, "-o", path)
    assert condinst(*command)[0] == 0
    assert fake_torch_side["loaded"] == (Path("a.pth"), Path("a.yaml"))
    assert CondInstConfig.from_json(path.read_text()).class_names[79] == "part 79"
    names.write_text("one\ntwo")
    assert_refused(condinst(*command), "names 2 classes, the weights have 80")
    names.unlink()
    assert_refused(condinst(*command), "names.txt does not exist")


def test_import_takes_a_published_name(
    condinst: Run, tmp_path: Path, fake_torch_side: dict[str, Any]
) -> None:
    command = ("import", "a.pth", "--preset-from", "CondInst_MS_R_50_1x", "-o")
    assert condinst(*command, tmp_path / "model.safetensors")[0] == 0
    assert fake_torch_side["loaded"] == (Path("a.pth"), PUBLISHED["MS_R_50_1x"])


def test_compare_returns_1_when_the_files_differ(
    condinst: Run, fake_torch_side: dict[str, Any]
) -> None:
    status, text, _ = condinst("compare", "a.onnx", "b.onnx", "x.jpg", "y.jpg")
    assert status == 0 and "boxes 0.5" in text and "they agree" in text
    compared = (Path("a.onnx"), Path("b.onnx"), [Path("x.jpg"), Path("y.jpg")])
    assert fake_torch_side["compared"] == compared
    fake_torch_side["verdict"] = "differs"
    status, text, _ = condinst("compare", "a.onnx", "b.onnx", "--json")
    assert status == 1 and json.loads(text) == {"ok": False}


def test_a_network_goes_from_checkpoint_to_results(
    condinst: Run, nano_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.onnx"
    options = ("--size", "64x96", "--batch", "2", "--max-detections", "3", "--json")
    status, text, err = condinst("export", nano_checkpoint, "-o", path, *options)
    assert status == 0
    stages = [line.split(" ... ")[0] for line in err.splitlines()]
    assert stages == ["tracing", "writing", "checking", "self-test"]
    data = json.loads(text)
    assert data["output"] == str(path) and data["check"]["ok"] and not data["check"]["lifted"]
    assert {"mask_features", "nms"} <= {row["stage"] for row in data["check"]["rows"]}
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".onnx"] == ["small.onnx"]

    data = json.loads(condinst("info", path, "--json")[1])
    checkpoint = json.loads(condinst("info", nano_checkpoint, "--json")[1])
    assert data["checkpoint_sha256"] == checkpoint["sha256"]
    assert (data["size"], data["batch"], data["config"]["detect"]["max_detections"]) == (
        [64, 96],
        2,
        3,
    )
    assert checkpoint["parameters"] > 1_000_000

    for model, count in ((path, 9), (nano_checkpoint, 60)):
        command = ("predict", model, photos, "-o", tmp_path / "out", "--json")
        images = json.loads(condinst(*command)[1])["images"]
        assert sum(image["instances"] for image in images) == count


def test_import_and_export_refuse_what_is_no_checkpoint(condinst: Run, tmp_path: Path) -> None:
    bomb, missing = tmp_path / "bomb.pth", tmp_path / "missing.pth"
    bomb.write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded")), protocol=2))
    out = tmp_path / "out" / "model.safetensors"
    assert_refused(condinst("import", bomb, "-o", out), "bomb.pth", "could run code")
    assert_refused(condinst("import", missing, "-o", out), "missing.pth does not exist")
    text = tmp_path / "text.safetensors"
    text.write_text("I am a text")
    for verb in (("export", text, "-o", tmp_path / "a.onnx"), ("predict", text, "x", "-o", "out")):
        assert_refused(condinst(*verb), "text.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.pth", "text.safetensors"]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
