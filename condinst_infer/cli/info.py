"""`condinst info`: the content of a model file."""

import json
import math
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condinst_infer.cli.options import Verb, add_json
from condinst_infer.config.model import CondInstConfig, config_from_dict
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.contract.model_file import ModelFile, kind_of, model_path
from condinst_infer.contract.weights_sha256 import WEIGHTS_KEY
from condinst_infer.errors import CheckpointError, ConfigError, ModelFileError, require
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.paths import check_readable_file


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Options of `condinst info`; ConfigError if two of them exclude each other."""

    file: Path
    json: bool
    contract: bool
    verify: bool

    def __post_init__(self) -> None:
        if self.json and self.contract:
            raise ConfigError("--contract is a text for people; give it without --json.")
        if self.verify and self.contract:
            raise ConfigError("--contract and --verify exclude each other.")


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `InfoOptions`."""
    parser.add_argument(
        "file",
        type=model_path,
        metavar="FILE",
        help="an .onnx, .engine or .safetensors file, or nuclei, the model that ships",
    )
    parser.add_argument(
        "--contract",
        action="store_true",
        help="print what to do before and after the network of this file, without this package",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the weights with the SHA-256 that was written with them, and nothing else: "
        "exit status 0 if they match or the file has none, 1 if they changed",
    )
    add_json(parser)


def run(options: InfoOptions) -> int:
    """Print what is inside a model file."""
    if options.verify:
        from condinst_infer.cli.info_verify import verify

        return verify(options.file, as_json=options.json)
    if options.contract:
        print(_contract(options.file))
        return 0
    readers = {
        ModelFile.ONNX: _onnx_info,
        ModelFile.ENGINE: _engine_info,
        ModelFile.CHECKPOINT: _checkpoint_info,
    }
    data = readers[kind_of(options.file)](options.file)
    data["sha256"] = file_sha256(options.file)
    data["bytes"] = options.file.stat().st_size
    if options.json:
        print(json.dumps(data))
        return 0
    config = config_from_dict(data.pop("config"))
    if "weights_sha256" in data:
        data["weights_sha256"] = data["weights_sha256"] or "no checksum"
    _print_facts(_config_info(config) | data)
    return 0


def _contract(path: Path) -> str:
    """The contract of a file that has one."""
    from condinst_infer.cli.info_contract import contract_text

    kind = kind_of(path)
    if kind is ModelFile.ONNX:
        from condinst_infer.runtimes.ort import OrtSession

        return contract_text(OrtSession(path).metadata, path.name)
    if kind is ModelFile.ENGINE:
        from condinst_infer.trt import sidecar

        beside, _ = sidecar.read(path)
        return contract_text(beside.metadata(path), path.name, str(beside.profile))
    raise ModelFileError(
        f"{path} is a checkpoint, which only this package runs; an exported file has a contract. "
        f"Export it: condinst export {path} -o {path.with_suffix('.onnx').name}"
    )


def _print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    """A line per fact; facts about a fact stand below it, further right."""
    for name, value in facts.items():
        label = f"{indent}{name}:"
        if isinstance(value, Mapping):
            print(label)
            _print_facts(value, f"{indent}  ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{label:19} {text}")


def _onnx_info(path: Path) -> dict[str, Any]:
    from condinst_infer.runtimes.ort import OrtSession

    session = OrtSession(path)
    data = asdict(session.metadata)
    data["versions"] = ", ".join(f"{k} {v}" for k, v in session.metadata.versions.items())
    data["size"] = list(data["size"]) if data["size"] else "dynamic"
    data["batch"] = data["batch"] or "dynamic"
    for name in ("int8_for", "standard_ops"):
        if not data[name]:
            del data[name]
    if (int8 := session.props.get("condinst_int8")) is not None:
        data["int8"] = parse_json(int8, f"condinst_int8 in {path}", ModelFileError)
    data["weights_sha256"] = session.props.get(WEIGHTS_KEY)
    data["inputs"] = {name: str(spec) for name, spec in session.inputs.items()}
    data["outputs"] = {name: str(spec) for name, spec in session.outputs.items()}
    return data


def _engine_info(path: Path) -> dict[str, Any]:
    """Facts from the sidecar; the engine is compared with it and not loaded."""
    from condinst_infer.trt import sidecar

    beside, _ = sidecar.read(path)
    metadata = beside.metadata(path)
    versions = ", ".join(f"{k} {v}" for k, v in metadata.versions.items())
    return {
        "config": asdict(metadata.config),
        "graph": metadata.graph,
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "versions": versions,
        **beside.lines(),
    }


def _checkpoint_info(path: Path) -> dict[str, Any]:
    """Facts from the header alone."""
    safetensors = require("safetensors", "export")
    check_readable_file(path, CheckpointError)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}.") from None
    if "condinst" not in metadata:
        raise CheckpointError(
            f"{path} was not written by condinst-infer. Convert it: "
            "condinst import WEIGHTS -o model.safetensors"
        )
    config = CondInstConfig.from_json(metadata["condinst"])
    return {
        "config": asdict(config),
        "tensors": len(shapes),
        "parameters": sum(map(math.prod, shapes)),
        "weights_sha256": metadata.get(WEIGHTS_KEY),
    }


def _config_info(config: CondInstConfig) -> dict[str, Any]:
    """The lines about a config that a person wants to see."""
    detect = config.detect
    by_masks = f"{detect.mask_nms}, by the masks of {config.mask_candidates} candidates"
    return {
        "name": config.name,
        "backbone": config.backbone.backbone_type,
        "neck": config.neck.neck_type,
        "input": f"short side {config.input.short_side}, long side {config.input.long_side} pixels",
        "head levels": " ".join(f"P{level}" for level in config.heads.head_levels),
        "mask head": f"{config.mask.mask_head_depth} layers of {config.mask.mask_head_width}, "
        f"{config.num_params} parameters, {config.mask.coordinates} coordinates",
        "mask stride": f"{config.mask.mask_stride} pixels",
        "NMS": "by boxes" if detect.nms == "box" else by_masks,
        "max detections": detect.max_detections,
        "lowest score": round(config.reported_floor, 4),
        "classes": _shorten(config.class_names),
        **({"stuff": _shorten(config.panoptic.stuff_names)} if config.is_panoptic else {}),
    }


def _shorten(names: Sequence[str]) -> str:
    """Some of `names`, and how many there are."""
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")


VERB = Verb(
    "condinst info model.onnx\n  condinst info model.onnx --verify", add_options, InfoOptions, run
)
