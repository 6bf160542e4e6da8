"""What lies beside an engine, and that TensorRT sees none of an engine that does not fit it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.errors import InputError, ModelFileError
from condinst_infer.runtimes.tensorrt import TrtSession
from condinst_infer.trt.sidecar import DIGEST, Gpu, atomic_engine, read, sidecar_path
from engines.emulator import Emulator
from tests.support.damage import DAMAGES
from tests.support.fake_tensorrt.device import built, install
from tests.support.fake_tensorrt.types import state


@pytest.fixture
def engine(
    cuda_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, nano_onnx: Path, tmp_path: Path
) -> Path:
    """An engine of the stand-in."""
    install(monkeypatch)
    return built(nano_onnx, tmp_path, min_shape=(1, 64, 64), max_shape=(3, 192, 192))


def rewritten(path: Path, **changes: Any) -> None:
    """Give the engine `path` an honest sidecar with other contents."""
    found, _ = read(path)
    sidecar_path(path).write_text(replace(found, **changes).to_json())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path) -> None:
    beside = sidecar_path(path)
    beside.write_text(beside.read_text().replace('"inspected": "engine"', '"inspected": "enginf"'))


def empty(path: Path) -> None:
    sidecar_path(path).write_text("")


def foreign_contract(path: Path) -> None:
    found, _ = read(path)
    props = replace(found.metadata(path), contract=2).to_props()
    rewritten(path, props=props)


def other_gpu(path: Path) -> None:
    rewritten(path, gpu=Gpu("NVIDIA L4", (8, 9), "12.2"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, r"bytes, dynamic\.engine\.json says"),
        (flip, "damaged or another engine"),
        (lambda path: sidecar_path(path).unlink(), r"has no dynamic\.engine\.json"),
        (lambda path: path.unlink(), "does not exist"),
        (edit, r"json was changed after the build"),
        (empty, "json is damaged or not ours: it is not JSON"),
        (lambda path: sidecar_path(path).write_text("[1]"), "json is damaged or not ours"),
        (lambda path: rewritten(path, format=1), "of another version of this package"),
        (foreign_contract, "follows contract 2"),
        (lambda path: rewritten(path, runtime_version="10.9.0"), r"10\.9\.0, installed is 11\.4"),
        (other_gpu, r"compute capability 8\.9, this GPU has 7\.5"),
    ],
)
def test_what_does_not_fit_is_refused_before_tensorrt_sees_it(
    damage: Callable[[Path], object], words: str, engine: Path
) -> None:
    damage(engine)
    with pytest.raises(ModelFileError, match=words) as caught:
        TrtSession(engine)
    assert state.seen == []
    text = str(caught.value)
    again = f"condinst build {engine.with_name('dynamic.onnx')} -o {engine}"
    assert text.endswith(again) and "\n" not in text


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("which", ["engine", "sidecar"])
def test_a_damaged_file_of_any_kind_is_refused(which: str, kind: str, engine: Path) -> None:
    DAMAGES[kind](engine if which == "engine" else sidecar_path(engine))
    with pytest.raises(ModelFileError) as caught:
        read(engine)
    assert engine.name in str(caught.value) and "\n" not in str(caught.value)
    assert "Rebuild it: condinst build" in str(caught.value)


@pytest.mark.parametrize("changes", [{"onnx": 5}, {"props": [1]}, {"profile": 3}, {"gpu": [1]}])
def test_a_sidecar_of_other_types_is_refused(changes: dict[str, Any], engine: Path) -> None:
    found, _ = read(engine)
    data = found.to_dict() | changes
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    sidecar_path(engine).write_text(json.dumps({**data, DIGEST: digest}))
    with pytest.raises(ModelFileError, match="can't be read: .* Rebuild it: condinst build"):
        read(engine)


def test_an_engine_of_tensorrt_rtx_runs_on_any_gpu(engine: Path) -> None:
    found, _ = read(engine)
    for gpu in (None, Gpu("NVIDIA L4", (8, 9), "12.2")):
        replace(found, runtime="tensorrt_rtx", gpu=gpu).check_gpu(engine, (12, 0))


def test_the_sidecar_is_json_that_a_person_can_read(engine: Path) -> None:
    data = json.loads(sidecar_path(engine).read_text())
    assert data["profile"] == {"min": [1, 64, 64], "opt": [1, 128, 192], "max": [3, 192, 192]}
    assert data["gpu"]["compute_capability"] == [7, 5] and data["gpu"]["cuda"] == "12.2"
    assert data["plugin"] == ["ClassNMS", "DynamicMaskHead"] and data["inspected"] == "engine"


@pytest.mark.parametrize("fails", [True, False])
def test_a_pair_is_replaced_whole_or_not_at_all(engine: Path, fails: bool) -> None:
    before, (found, data) = set(engine.parent.iterdir()), read(engine)
    try:
        with atomic_engine(engine) as part:
            assert part.suffix == ".engine" and part.parent == engine.parent
            part.write_bytes(data)
            sidecar_path(part).write_text(replace(found, smoke_run="passed").to_json())
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert set(engine.parent.iterdir()) == before
    assert read(engine)[0].smoke_run == ("not made yet" if fails else "passed")


def test_an_interrupted_replacement_is_never_loaded(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, data = read(engine)
    rename = Path.replace

    def stops(self: Path, target: Path) -> Path:
        if target == sidecar_path(engine):
            raise OSError(5, "the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    with (
        pytest.raises(
            InputError, match=r"dynamic\.engine\.json can't be written: the disk is gone"
        ),
        atomic_engine(engine) as part,
    ):
        part.write_bytes(data[:-1] + b"?")
        sidecar_path(part).write_text(found.to_json())
    with pytest.raises(ModelFileError, match="damaged or another engine"):
        read(engine)
