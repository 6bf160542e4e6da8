"""What this machine can do with a model, what is missing, and the command that installs it.

Versions come from the installed packages' records; only ONNX Runtime and OpenVINO are imported,
since no record lists what they offer on this machine.
"""

import argparse
import importlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from condinst_infer.profiling import environment

PACKAGES = (
    "condinst-infer",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "tqdm",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "safetensors",
    "onnx",
    "onnxscript",
    "pyyaml",
    "faster-coco-eval",
    "tensorboard",
    "supervision",
    "fastapi",
    "uvicorn",
    "python-multipart",
    "prometheus-client",
    "ray",
    "pyarrow",
    "pandas",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
)
_CUDA = "CUDAExecutionProvider"


def report() -> dict[str, Any]:
    """Plain data: python, platform, packages, providers, openvino, gpus, capabilities."""
    packages = {name: _version(name) for name in PACKAGES}
    providers, openvino = _providers(), _openvino_precisions()
    gpus = environment.gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "providers": providers,
        "openvino": openvino,
        "gpus": gpus,
        "capabilities": capabilities(packages, providers, openvino, gpus),
    }


def run(args: argparse.Namespace) -> int:
    """`condinst doctor`."""
    data = report()
    print(json.dumps(data) if args.json else text(data))
    return 0


def capabilities(
    packages: Mapping[str, str | None], providers: list[str], openvino: list[str], gpus: list[str]
) -> dict[str, dict[str, Any]]:
    """What can be done: {name: {"ok": bool, "missing": [...], "fix": command or ""}}.

    Args:
        packages: version or None of each of `PACKAGES`.
        providers: execution providers of ONNX Runtime; empty if it can't be imported.
        openvino: precisions of OpenVINO on this CPU; empty if it can't be imported.
        gpus: one line per NVIDIA GPU.
    """
    lacks = {name for name, version in packages.items() if version is None}
    runtime = [] if providers else ["onnxruntime"]
    return {
        "run on CPU": _capability(runtime, _extra("cpu")),
        "run in OpenVINO": _capability(
            ([] if openvino else ["openvino"]) + _missing(lacks, "onnx"), _extra("openvino")
        ),
        "run on CUDA": _capability(
            _no_gpu(gpus)
            + ([] if _CUDA in providers else ["onnxruntime-gpu"])
            + _missing(lacks, "cuda-bindings"),
            # the two wheels hold the same module, the one installed last wins
            "pip uninstall -y onnxruntime && " + _extra("gpu"),
        ),
        "build engines": _capability(_tensorrt(lacks), _extra("tensorrt")),
        "run engines": _capability(
            _no_gpu(gpus) + _tensorrt(lacks) + _missing(lacks, "cuda-bindings"), _extra("tensorrt")
        ),
        "export": _capability(
            _missing(lacks, "torch", "safetensors", "onnx", "onnxscript") + runtime,
            _extra("export"),
        ),
        "import and PyTorch": _capability(
            _missing(lacks, "torch", "safetensors", "pyyaml"), _extra("export")
        ),
        "train": _capability(
            _missing(lacks, "torch", "safetensors", "faster-coco-eval", "tensorboard"),
            _extra("train"),
        ),
        "eval": _capability(_missing(lacks, "faster-coco-eval") + runtime, _extra("eval")),
        "serve": _capability(
            _missing(lacks, "fastapi", "uvicorn", "python-multipart", "prometheus-client"),
            _extra("serve"),
        ),
        "predict --ray": _capability(_missing(lacks, "ray", "pyarrow", "pandas"), _extra("ray")),
    }


def text(data: Mapping[str, Any]) -> str:
    """The report as lines for people."""
    lines = [f"python {data['python']} on {data['platform']}", "", "packages"]
    lines += [f"  {name:24}{version or '-'}" for name, version in data["packages"].items()]
    lines += ["", "ONNX Runtime providers", f"  {', '.join(data['providers']) or '-'}"]
    lines += ["", "OpenVINO precisions", f"  {', '.join(data['openvino']) or '-'}"]
    lines += ["", "GPUs", *(f"  {gpu}" for gpu in data["gpus"] or ["-"])]
    lines += ["", "what works"]
    for name, state in data["capabilities"].items():
        if state["ok"]:
            lines.append(f"  {name:24}ok")
        else:
            lines.append(f"  {name:24}missing: {', '.join(state['missing'])}")
            if state["fix"]:
                lines.append(f"  {'':24}{state['fix']}")
    return "\n".join(lines)


def _capability(missing: list[str], fix: str) -> dict[str, Any]:
    only_hardware = missing == [_NO_GPU]
    return {
        "ok": not missing,
        "missing": missing,
        "fix": "" if not missing or only_hardware else fix,
    }


_NO_GPU = "an NVIDIA GPU with its driver"


def _no_gpu(gpus: list[str]) -> list[str]:
    return [] if gpus else [_NO_GPU]


def _missing(lacks: set[str], *names: str) -> list[str]:
    return [name for name in names if name in lacks]


def _tensorrt(lacks: set[str]) -> list[str]:
    """Either of NVIDIA's two builders will do."""
    return ["tensorrt"] if {"tensorrt", "tensorrt-rtx"} <= lacks else []


def _extra(name: str) -> str:
    return f"pip install 'condinst-infer[{name}]'"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except Exception:  # no record, or a damaged one: a doctor does not fall ill
        return None


def _providers() -> list[str]:
    try:
        return importlib.import_module("onnxruntime").get_available_providers()
    except Exception:  # not installed, or its libraries don't load
        return []


def _openvino_precisions() -> list[str]:
    """What `load` takes as `precision` here."""
    try:
        from condinst_infer.runtimes.openvino import cpu_precisions

        return cpu_precisions()
    except Exception:  # not installed, or its libraries don't load
        return []
