"""`condinst bench`: what it measures, says and writes."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest

from condinst_infer.cli.bench import text
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.profiling import scopes
from condinst_infer.profiling.benchmark import benchmark
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.runtimes.runner import CpuRunner
from engines.emulator import Emulator
from tests.support.annotated import annotated
from tests.support.command_line import Run, assert_refused
from tests.support.fake_tensorrt.device import Replayed, built, install
from tests.support.silent_session import Silent

FEW = ("--repeats", 2, "--warmup", 1, "--threads", 1)
_LABELS = ("engine", "pipeline", "end to end", "end to end and RLE")
SMALL = ("--size", "60x90", "90x60")


def test_a_result_names_file_machine_and_rows(nano_onnx: Path, photos: Path) -> None:
    shares: list[float] = []
    result = benchmark(
        nano_onnx,
        threads=1,
        images=[photos / "a.png", photos / "12.jpg"],
        sizes=[(60, 90), (120, 180)],
        batches=[1, 2],
        repeats=2,
        warmup=1,
        progress=shares.append,
    )
    result = json.loads(json.dumps(result))
    model = result["model"]
    assert model["file"] == "dynamic.onnx" and model["sha256"] == file_sha256(nano_onnx)
    assert (model["runtime"], model["device"], model["threads"]) == ("onnxruntime", "cpu", 1)
    assert model["precision"] == "fp32" and model["bytes"] == nano_onnx.stat().st_size
    assert result["environment"]["cpu"] and result["load_ms"] > 0 and result["first_call_ms"] > 0
    assert result["memory"]["peak_mib"] > 20
    instances = {"engine", "pipeline", "end_to_end", "end_to_end_rle"}
    assert set(result["clocks"]) == instances | {"panoptic"}
    assert all(set(row["clocks_ms"]) == instances for row in result["rows"])
    assert result["accuracy"] is None
    rows = result["rows"]
    assert [(Path(row["image"]).name, row["size"], row["batch"]) for row in rows] == [
        (image, size, batch)
        for image in ("a.png", "12.jpg")
        for size in ([60, 90], [120, 180])
        for batch in (1, 2)
    ]
    for row in rows:
        assert row["canvas"] == [128, 192] and len(row["instances"]) == row["batch"]
        engine = row["clocks_ms"]["engine"]
        assert engine["count"] == 2 and engine["p50"] > 0
        parts = list(row["stages_ms"].values())[1:-3]
        assert len(parts) == 9 and sum(parts) == pytest.approx(engine["p50"])
        assert 0 < row["convolutions_of_end_to_end"]["outside_share"] < 1
    assert shares == pytest.approx([i / 24 for i in range(1, 25)])


def test_the_frames_are_the_images_at_the_sizes(
    bright_model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    measure = scopes.FrameScopes.measure

    def watched(self: scopes.FrameScopes, *args: object) -> None:
        seen.extend(self.frames)
        measure(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(scopes.FrameScopes, "measure", watched)
    benchmark(bright_model, images=[photos / "a.png"], sizes=[(30, 45)], repeats=1, warmup=1)
    benchmark(bright_model, sizes=[(64, 64)], repeats=1, warmup=1)
    assert seen[0].shape == (30, 45, 3) and seen[0][15, 10].min() > 200 > 50 > seen[0][3, 40].max()
    assert seen[1].shape == (64, 64, 3) and 5 < seen[1].std() < 120  # a micrograph


def test_the_frames_of_a_call_are_one_batch(
    bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run = CpuRunner.run
    monkeypatch.setattr(
        CpuRunner,
        "run",
        lambda self, batch, *rest: (seen.append(len(batch)), run(self, batch, *rest))[1],
    )
    benchmark(bright_model, sizes=[(60, 90)], batches=[3], repeats=1, warmup=1)
    assert set(seen) == {3}


def test_command_prints_a_table_and_writes_json(
    condinst: Run, nano_onnx: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "times.json"
    status, out, err = condinst("bench", nano_onnx, *FEW, *SMALL, "-o", path)
    assert (status, err) == (0, "")
    result = json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == ["times.json"]
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert out == text(result) + "\n"
    assert file_sha256(nano_onnx) in out and "onnxruntime, cpu, 1 threads" in out
    assert re.search(r"^frame +60x90 +90x60$", out, re.M)
    assert re.search(r"^network input +128x192 +192x128$", out, re.M)
    row = result["rows"][1]
    for name, clock in zip(_LABELS, row["clocks_ms"].values(), strict=True):
        found = re.search(rf"^  {name} +p50 +[\d.]+ +([\d.]+)$", out, re.M)
        assert found is not None and float(found[1]) == pytest.approx(clock["p50"], rel=0.01)
    for stage, ms in row["stages_ms"].items():
        found = re.search(rf"^  {stage} +[\d.]+ +([\d.]+)$", out, re.M)
        assert found is not None and float(found[1]) == pytest.approx(ms, rel=0.01, abs=0.01)
    share = 100 * row["convolutions_of_end_to_end"]["outside_share"]
    assert out.rstrip().endswith(f"{share:.1f} %")


def test_command_as_json_with_the_accuracy(condinst: Run, bright_model: Path, photos: Path) -> None:
    truth = annotated(photos)
    words = ("bench", bright_model, *FEW, "--size", "60x90", "--annotations", truth)
    status, out, err = condinst(*words, "--images", photos, "--limit", 2, "--json")
    assert (status, err) == (0, "")
    accuracy = json.loads(out)["accuracy"]
    assert accuracy["images"] == 2 and accuracy["annotations"] == truth.name
    assert accuracy["detections"] == 2 and accuracy["mask"]["AP50"] == pytest.approx(100)
    assert re.search(
        r"^accuracy on 2 images of .*\n +AP .*\nbox .*\nmask ", text(json.loads(out)), re.M
    )


def test_many_rows_are_printed_below_each_other(condinst: Run, bright_model: Path) -> None:
    status, out, _ = condinst("bench", bright_model, *FEW, "--size", *["60x90"] * 5)
    assert status == 0
    assert [line.count("60x90") for line in out.splitlines() if line[:5] == "frame"] == [4, 1]
    assert re.search(r"^  network( +[\d.]+){4}$", out, re.M)  # its names tell no parts
    assert "from a profile" not in out


def test_a_static_file_has_its_own_batch(condinst: Run, nano_static_onnx: Path) -> None:
    status, out, _ = condinst("bench", nano_static_onnx, *FEW, "--size", "60x90", "--json")
    row = json.loads(out)["rows"][0]
    assert status == 0 and row["batch"] == 2 and row["canvas"] == [128, 160]
    assert_refused(condinst("bench", nano_static_onnx, "--batch", 1), "batches of 2", "--batch")


def test_pytorch_runs_too(condinst: Run, nano_checkpoint: Path) -> None:
    status, out, _ = condinst("bench", nano_checkpoint, *FEW, "--size", "60x90", "--json")
    result = json.loads(out)
    assert status == 0 and result["model"]["runtime"] == "torch"
    assert result["rows"][0]["stages_ms"]["mask heads"] > 0


def test_wrong_calls_are_refused_before_anything_is_measured(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes.FrameScopes, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for words, said in (
        (("--image", photos / "none.png"), "does not exist"),
        (("--annotations", photos / "a.json"), "belong together"),
        (("--images", photos), "belong together"),
        (("--annotations", photos / "a.json", "--images", photos), "a.json"),
        (("-o", tmp_path / "file" / "a.json"), "can't be written"),
        (("--size", "60"), "HxW"),
    ):
        assert_refused(condinst("bench", bright_model, *words), said)
    assert_refused(condinst("bench", tmp_path / "none.onnx"), "none.onnx")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    assert_refused(condinst("bench", bright_model, "-o", tmp_path / "a.json"), "No space left")


def test_a_failure_leaves_no_file(
    condinst: Run, bright_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "times.json"
    path.write_text("old")
    monkeypatch.setattr(scopes.FrameScopes, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        condinst("bench", bright_model, "-o", path)
    assert path.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["times.json"]


def test_a_session_without_a_profile_has_one_network(
    bright_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "condinst_infer.runtimes.ort.OrtSession", lambda path, **_: Silent(OrtSession(path))
    )
    result = benchmark(bright_model, sizes=[(60, 90)], repeats=1, warmup=1)
    assert "network" in result["rows"][0]["stages_ms"]
    assert "convolutions, ms" not in text(result)


def test_an_engine_has_the_clocks_of_a_gpu(
    nano_onnx: Path,
    cuda_emulator: Emulator,
    condinst: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    before = cuda_emulator.allocations()
    path = built(nano_onnx, tmp_path)
    words = ("bench", path, "--size", "128x192", "--repeats", 1, "--warmup", 1)
    status, out, _ = condinst(*words, "--json")
    result = json.loads(out)
    model, row = result["model"], result["rows"][0]
    assert status == 0 and (model["runtime"], model["device"]) == ("tensorrt", "cuda")
    assert model["precision"] == "fp32" and row["instances"][0] > 3
    assert list(row["clocks_ms"]) == ["engine", "end_to_end", "end_to_end_rle"]
    assert list(row["stages_ms"])[:2] == ["resize, paste and copies", "network"]
    # whole calls are a graph from the third on, the network alone from the second
    calls = 1 + 1 + 1 + 3 * 2  # first, results, found, and three functions in two turns
    assert Replayed.launches == calls - 2 + 1
    assert "end to end and RLE" in text(result)
    assert cuda_emulator.failure() == "" and cuda_emulator.allocations() == before
