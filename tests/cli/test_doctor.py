"""The doctor: what it reports on any machine, and that nothing about a machine makes it fail."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from condinst_infer.cli import doctor
from condinst_infer.cli.main import main
from condinst_infer.profiling.environment import package_versions

ALL: dict[str, str | None] = {name: "1.0" for name in package_versions()}
GPU = ["NVIDIA H200, 580.1, 143771 MiB, 9.0"]
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
OPENVINO = ["fp32", "bf16", "int8"]


def without(*names: str) -> dict[str, str | None]:
    return {**ALL, **dict.fromkeys(names)}


def test_everything_there_is_ok() -> None:
    states = doctor.capabilities(ALL, CUDA, OPENVINO, GPU)
    assert [state["ok"] for state in states.values()] == [True] * 11
    assert all(state["missing"] == [] and state["fix"] == "" for state in states.values())


@pytest.mark.parametrize(
    ("lost", "broken", "fix"),
    [
        ("onnxscript", {"export"}, "pip install 'condinst-infer[export]'"),
        ("tensorboard", {"train"}, "pip install 'condinst-infer[train]'"),
        ("uvicorn", {"serve"}, "pip install 'condinst-infer[serve]'"),
        ("pyarrow", {"predict --ray"}, "pip install 'condinst-infer[ray]'"),
        ("pyyaml", {"import and PyTorch"}, "pip install 'condinst-infer[export]'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(lost: str, broken: set, fix: str) -> None:
    states = doctor.capabilities(without(lost), CUDA, OPENVINO, GPU)
    assert {name for name, state in states.items() if not state["ok"]} == broken
    for name in broken:
        assert states[name]["missing"] == [lost] and states[name]["fix"] == fix


def test_without_a_runtime_nothing_runs_on_the_cpu() -> None:
    states = doctor.capabilities(without("onnxruntime", "onnxruntime-gpu"), [], OPENVINO, [])
    assert states["run on CPU"] == {
        "ok": False,
        "missing": ["onnxruntime"],
        "fix": "pip install 'condinst-infer[cpu]'",
    }
    assert not states["export"]["ok"] and states["import and PyTorch"]["ok"]


def test_cuda_needs_the_other_wheel_and_no_command_installs_a_gpu() -> None:
    cpu_wheel = doctor.capabilities(without("onnxruntime-gpu"), CUDA[1:], OPENVINO, GPU)[
        "run on CUDA"
    ]
    assert cpu_wheel["missing"] == ["onnxruntime-gpu"]
    assert cpu_wheel["fix"] == ("pip uninstall -y onnxruntime && pip install 'condinst-infer[gpu]'")
    no_gpu = doctor.capabilities(ALL, CUDA, OPENVINO, [])["run on CUDA"]
    assert not no_gpu["ok"] and no_gpu["fix"] == "" and "NVIDIA GPU" in no_gpu["missing"][0]


def test_openvino_needs_onnx_and_what_it_computes_in_is_asked_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = doctor.capabilities(ALL, CUDA, [], [])["run in OpenVINO"]
    assert broken["missing"] == ["openvino"]
    no_onnx = doctor.capabilities(without("onnx"), CUDA, OPENVINO, [])["run in OpenVINO"]
    assert no_onnx["missing"] == ["onnx"]
    assert no_onnx["fix"] == "pip install 'condinst-infer[openvino]'"
    can = ["WINOGRAD", "INT8", "FP32"]
    core = SimpleNamespace(get_property=lambda device, name: can if device == "CPU" else [])
    monkeypatch.setattr("condinst_infer.runtimes.openvino.core", lambda: core)
    assert doctor.report()["openvino"] == ["fp32", "int8"]


def test_either_builder_will_do_and_running_an_engine_needs_more() -> None:
    for lacking in ("tensorrt", "tensorrt-rtx"):
        states = doctor.capabilities(without(lacking), [], OPENVINO, [])
        assert states["build engines"]["ok"]
        assert states["run engines"]["missing"] == ["an NVIDIA GPU with its driver"]
    neither = doctor.capabilities(without("tensorrt", "tensorrt-rtx"), [], OPENVINO, GPU)
    for verb in ("build engines", "run engines"):
        assert neither[verb]["missing"] == ["tensorrt"]
        assert neither[verb]["fix"] == "pip install 'condinst-infer[tensorrt]'"
    no_bindings = doctor.capabilities(without("cuda-bindings"), CUDA, OPENVINO, GPU)
    for verb in ("run on CUDA", "run engines"):
        assert no_bindings[verb]["missing"] == ["cuda-bindings"]


def test_the_report_is_json_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["packages"]) == set(package_versions())
    assert data["packages"]["numpy"].count(".") == 2
    assert "CPUExecutionProvider" in data["providers"]
    assert data["capabilities"]["run on CPU"]["ok"]


def test_the_text_names_each_package_capability_and_command() -> None:
    packages = without("onnxscript")
    data = {
        "python": "3.11",
        "platform": "somewhere",
        "packages": packages,
        "providers": CUDA,
        "openvino": OPENVINO,
        "gpus": GPU,
        "capabilities": doctor.capabilities(packages, CUDA, OPENVINO, GPU),
    }
    text = doctor.text(data)
    for word in (
        *package_versions(),
        *CUDA,
        ", ".join(OPENVINO),
        *GPU,
        *data["capabilities"],
        "missing: onnxscript",
    ):
        assert word in text
    assert "numpy                   1.0\n" in text and "onnxscript              -\n" in text
    assert "pip install 'condinst-infer[export]'" in text and "[gpu]" not in text


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        (None, []),
        ("echo broken driver >&2; exit 9", []),
        (r"printf '\377\376'", []),
        ("echo 'NVIDIA H200, 580.1, 143771 MiB, 9.0'; echo", GPU),
    ],
)
def test_gpus_are_those_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, gpus: list[str]
) -> None:
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.report()["gpus"] == gpus


def test_a_broken_onnxruntime_is_only_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libcudart.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    data = doctor.report()
    assert data["providers"] == [] and not data["capabilities"]["run on CPU"]["ok"]


def test_it_works_where_nothing_but_python_does() -> None:
    """Even numpy and OpenCV may be broken: nothing outside the standard library is needed."""
    block = "import sys; sys.modules.update(dict.fromkeys({!r}))".format(
        ["numpy", "cv2", "PIL", "tqdm", "torch", "onnx", "onnxruntime", "openvino"]
    )
    code = f"{block}; from condinst_infer.cli.main import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "run on CPU              missing: onnxruntime" in done.stdout
