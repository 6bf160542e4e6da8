"""The device of a model file: its words, and the number of its GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

import condinst_infer as ci
from condinst_infer.config.validation import parse_device
from condinst_infer.errors import ConfigError, SessionError
from condinst_infer.runtimes.runner import open_model
from engines.emulator import Emulator
from tests.support.command_line import Run, assert_refused


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", ("cpu", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:11", ("cuda", 11)),
        (torch.device("cpu"), ("cpu", 0)),
        (torch.device("cuda"), ("cuda", 0)),
        (torch.device("cuda", 1), ("cuda", 1)),
    ],
)
def test_a_device_is_a_kind_and_a_number(device: Any, expected: tuple[str, int]) -> None:
    assert parse_device(device) == expected


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:1", 0])
def test_other_words_are_refused(device: Any, bright_model: Path) -> None:
    with pytest.raises(ConfigError, match="it must be one of cpu, cuda"):
        ci.load(bright_model, device=device)


def test_a_device_of_torch_is_taken(bright_model: Path) -> None:
    with ci.load(bright_model, device=torch.device("cpu")) as pipeline:
        assert "on cpu" in repr(pipeline)


class Seen(Exception):
    """Ends the opening of a model where the number of the GPU has arrived."""


@pytest.mark.parametrize("name", ["m.onnx", "m.engine"])
def test_the_number_reaches_the_session(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Device:
        def __init__(self, index: int) -> None:
            seen["gpu"] = index

    class Stream:
        handle = 7

        def __init__(self, device: Device) -> None:
            pass

        def close(self) -> None:
            pass

    def session(path: Path, **options: Any) -> None:
        seen.update(options)
        raise Seen

    monkeypatch.setattr("condinst_infer.cuda.driver.Device", Device)
    monkeypatch.setattr("condinst_infer.cuda.stream.Stream", Stream)
    monkeypatch.setattr(
        "condinst_infer.runtimes.detector_cut.detector_from_full", lambda path: None
    )
    monkeypatch.setattr("condinst_infer.runtimes.ort.OrtSession", session)
    monkeypatch.setattr("condinst_infer.runtimes.tensorrt.TrtSession", session)
    with pytest.raises(Seen):
        open_model(Path(name), "cuda:3", None)
    assert seen["device_index"] == 3
    assert name == "m.engine" or (seen["gpu"], seen["device"]) == (3, "cuda")


def test_a_gpu_that_is_not_there_is_named(cuda_emulator: Emulator, detector_onnx: Path) -> None:
    with pytest.raises(SessionError, match=r"there is no GPU 5; the driver sees \d"):
        ci.load(detector_onnx, device="cuda:5")


def test_the_command_line_takes_the_same_words(
    condinst: Run, bright_model: Path, photos: Path, tmp_path: Path
) -> None:
    words = ("predict", bright_model, photos / "a.png", "-o", tmp_path / "out", "--device")
    assert condinst(*words, "cpu")[0] == 0
    assert_refused(condinst(*words, "gpu"), "device is 'gpu'", "cuda:N")
