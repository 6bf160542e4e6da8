"""`condinst doctor`: what works on this machine, and the command that installs the rest.

With --gpu-check it runs the kernels instead: condinst_infer.profiling.gpu.run.

Versions come from the installed packages' records; only ONNX Runtime and OpenVINO are imported,
since no record lists what they offer on this machine.
"""

import importlib
import json
import platform
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condinst_infer.cli.options import Verb, add_json
from condinst_infer.errors import ConfigError
from condinst_infer.profiling.environment import package_versions
from condinst_infer.system.hardware import gpus

_CUDA = "CUDAExecutionProvider"


def report() -> dict[str, Any]:
    """Plain data: python, platform, packages, providers, openvino, gpus, capabilities."""
    packages = package_versions()
    providers, openvino, found = _providers(), _openvino_precisions(), gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "providers": providers,
        "openvino": openvino,
        "gpus": found,
        "capabilities": capabilities(packages, providers, openvino, found),
    }


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `condinst doctor`; ConfigError if one lacks --gpu-check."""

    json: bool
    gpu_check: bool
    small: bool
    only: str | None
    output: Path | None

    def __post_init__(self) -> None:
        for option, value in (
            ("--small", self.small),
            ("--only", self.only),
            ("-o", self.output),
        ):
            if value and not self.gpu_check:
                raise ConfigError(f"{option} goes with --gpu-check.")


def run(options: DoctorOptions) -> int:
    """Print versions, GPUs and capabilities, or check and time the kernels on the GPU."""
    if options.gpu_check:
        from condinst_infer.profiling.gpu.run import gpu_check

        return gpu_check(
            only=options.only,
            output=options.output,
            small=options.small,
            print_json=options.json,
        )
    data = report()
    print(json.dumps(data) if options.json else text(data))
    return 0


def capabilities(
    packages: Mapping[str, str | None], providers: list[str], openvino: list[str], gpus: list[str]
) -> dict[str, dict[str, Any]]:
    """Capabilities by name, each {"ok": bool, "missing": [...], "fix": command or ""}.

    Args:
        packages: version, or None, of each package that the extras name.
        providers: execution providers of ONNX Runtime; empty if it can't be imported.
        openvino: precisions of OpenVINO on this CPU; empty if it can't be imported.
        gpus: one line per NVIDIA GPU.
    """
    runtime = [] if providers else ["onnxruntime"]
    return {
        "run on CPU": _capability(runtime, _extra("cpu")),
        "run in OpenVINO": _capability(
            ([] if openvino else ["openvino"]) + _absent(packages, "onnx"), _extra("openvino")
        ),
        "run on CUDA": _capability(
            _no_gpu(gpus)
            + ([] if _CUDA in providers else ["onnxruntime-gpu"])
            + _absent(packages, "cuda-bindings"),
            # the two wheels hold the same module, the one installed last wins
            "pip uninstall -y onnxruntime && " + _extra("gpu"),
        ),
        "build engines": _capability(_tensorrt(packages), _extra("tensorrt")),
        "run engines": _capability(
            _no_gpu(gpus) + _tensorrt(packages) + _absent(packages, "cuda-bindings"),
            _extra("tensorrt"),
        ),
        "export": _capability(
            _absent(packages, "torch", "safetensors", "onnx", "onnxscript") + runtime,
            _extra("export"),
        ),
        "import and PyTorch": _capability(
            _absent(packages, "torch", "safetensors", "pyyaml"), _extra("export")
        ),
        "train": _capability(
            _absent(packages, "torch", "safetensors", "faster-coco-eval", "tensorboard"),
            _extra("train"),
        ),
        "eval": _capability(_absent(packages, "faster-coco-eval") + runtime, _extra("eval")),
        "serve": _capability(
            _absent(packages, "fastapi", "uvicorn", "prometheus-client"),
            _extra("serve"),
        ),
        "predict --ray": _capability(_absent(packages, "ray", "pyarrow", "pandas"), _extra("ray")),
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


def _absent(packages: Mapping[str, str | None], *names: str) -> list[str]:
    return [name for name in names if packages.get(name) is None]


def _tensorrt(packages: Mapping[str, str | None]) -> list[str]:
    """Either of NVIDIA's two builders will do."""
    return _absent(packages, "tensorrt") and _absent(packages, "tensorrt-rtx") and ["tensorrt"]


def _extra(name: str) -> str:
    return f"pip install 'condinst-infer[{name}]'"


def _providers() -> list[str]:
    try:
        return importlib.import_module("onnxruntime").get_available_providers()
    except Exception:  # not installed, or its libraries don't load
        return []


def _openvino_precisions() -> list[str]:
    """Precisions that `load` takes here with OpenVINO."""
    try:
        from condinst_infer.runtimes.openvino import cpu_precisions

        return cpu_precisions()
    except Exception:  # not installed, or its libraries don't load
        return []


def _add_options(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument(
        "--gpu-check",
        action="store_true",
        help="check every CUDA kernel on this GPU against stored results, and against PyTorch "
        "where it is installed, then time them; exit status 1 if one is wrong",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="small sizes only, for compute-sanitizer; times mean nothing then",
    )
    parser.add_argument("--only", metavar="KERNEL", help="check and time one kernel")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file for the results, written after each one (default: they are only printed)",
    )


VERB = Verb(
    "condinst doctor\n  condinst doctor --gpu-check -o gpu-check.json",
    _add_options,
    DoctorOptions,
    run,
    outputs={"output": "text"},
)
