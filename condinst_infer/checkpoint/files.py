"""Weights and config in one safetensors file, and importers for the weights of others."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from condinst_infer.checkpoint.adelaidet import cfg_from_adelaidet_weights, model_from_adelaidet
from condinst_infer.checkpoint.foreign_config import read_foreign_config
from condinst_infer.checkpoint.mmdet import (
    cfg_from_mmdet_weights,
    model_from_mmdet,
)
from condinst_infer.checkpoint.renaming import model_from_renamed
from condinst_infer.checkpoint.torch_files import DamagedFileError, load_torch_file
from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.model_zoo import ADELAIDET, MMDET, PublishedModel
from condinst_infer.contract.metadata import KEY
from condinst_infer.contract.weights_sha256 import WEIGHTS_KEY
from condinst_infer.errors import CheckpointError, ConfigError
from condinst_infer.model.condinst import CondInst
from condinst_infer.model.weights import check_finite, weights_sha256
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import (
    check_readable_file,
    check_utf8_name,
    is_file,
    is_utf8_name,
)


def save(model: CondInst, path: str | Path) -> None:
    """Write `model` to `path` (.safetensors): weights as float32, config and class names inside.

    The SHA-256 of the weights goes into the metadata too; `contract.weights_sha256` has the rule.
    """
    path = Path(path)
    kept = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    weights = {name: tensor.contiguous() for name, tensor in kept.items()}
    metadata = {KEY: model.config.to_json(), WEIGHTS_KEY: weights_sha256(weights)}
    with atomic_file(path) as part:
        try:
            save_file(weights, part, metadata=metadata)
        except SafetensorError as error:  # it reports what the system refused as its own
            raise OSError(str(error)) from None
        _sort_metadata(part)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a .safetensors file in order: the library writes them in a random one."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the same header in another order"
        file.seek(8)
        file.write(text.ljust(length))


def load(path: str | Path) -> CondInst:
    """The model that `save` wrote to `path`, in evaluation mode.

    Raises:
        CheckpointError: no such file, not ours, not as it was saved, or tensors are missing,
            surplus, misshapen or not finite.
    """
    path = Path(path)
    weights, metadata = _read_safetensors(path)
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} has no CondInst configuration inside. "
            "Import other weights first: condinst import WEIGHTS -o model.safetensors"
        )
    try:
        config = CondInstConfig.from_json(metadata[KEY])
        check_finite(weights)
        if not _matches(weights, metadata.get(WEIGHTS_KEY)):
            raise CheckpointError(
                "the weights are not those that were saved: the SHA-256 inside differs. The file "
                "is damaged or was changed by another program; take another copy."
            )
        return model_from_renamed(config, weights, lambda name: name)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def weights_match(path: str | Path) -> bool | None:
    """True if the weights of a .safetensors file have the SHA-256 inside; None without one.

    Raises:
        CheckpointError: it is no such file, or a weight is not finite.
    """
    path = Path(path)
    weights, metadata = _read_safetensors(path)
    try:
        check_finite(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return _matches(weights, metadata[WEIGHTS_KEY]) if WEIGHTS_KEY in metadata else None


def _matches(weights: Mapping[str, Tensor], stored: str | None) -> bool:
    """True if `stored` is the SHA-256 of `weights`, or None: older files have none."""
    return stored is None or weights_sha256(weights) == stored


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file; CheckpointError if it is none."""
    check_readable_file(path, CheckpointError)
    check_utf8_name(path, "safetensors", CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return weights, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from None


def is_ours(path: Path) -> bool:
    """True if `path` is a file that `save` could have written."""
    if (
        path.suffix != ".safetensors"
        or not is_file(path, CheckpointError)
        or not is_utf8_name(path)
    ):
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def import_weights(path: str | Path, config: str | Path | PublishedModel | None = None) -> CondInst:
    """The model in an AdelaiDet or mmdetection checkpoint.

    Args:
        path: a .pth file or .safetensors with their tensor names. A .pth is read as plain tensors
            only; a pickle that wants to run code is rejected.
        config: its configuration as YAML or JSON, or a published one. Without it the weights'
            shapes decide, and everything they don't tell has the family's defaults.

    Raises:
        CheckpointError, ConfigError: as `model_from_adelaidet` and `model_from_mmdet`.
    """
    weights = read_tensors(Path(path))
    family = next((f for p, f in _FAMILIES.items() if any(n.startswith(p) for n in weights)), None)
    if family is None:
        raise CheckpointError(
            f"{path} holds no CondInst model of AdelaiDet or mmdetection: no tensor is called "
            "proposal_generator.* or bbox_head.*."
        )
    cfg: Mapping[str, Any] | None = None
    if isinstance(config, PublishedModel):
        if family != config.family:
            raise CheckpointError(
                f"{path} holds weights of {family}, but {config.name} is a model of "
                f"{config.family}. List the names: condinst presets --published"
            )
        cfg = {**config.cfg, "name": config.name}
    elif config is not None:
        cfg = read_foreign_config(Path(config))
    read_cfg, model_from = {
        MMDET: (cfg_from_mmdet_weights, model_from_mmdet),
        ADELAIDET: (cfg_from_adelaidet_weights, model_from_adelaidet),
    }[family]
    try:
        return model_from(weights, read_cfg(weights) if cfg is None else cfg)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


_FAMILIES = {"bbox_head.": MMDET, "proposal_generator.": ADELAIDET}  # how tensors are called


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .pth or .safetensors file of any origin; nothing in it is executed."""
    check_readable_file(path, CheckpointError)
    if path.suffix == ".safetensors":
        check_utf8_name(path, "safetensors", CheckpointError)
    try:
        if path.suffix == ".safetensors":
            data: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # about pickle protocols: the error below says more
                warnings.simplefilter("ignore")
                data = load_torch_file(path)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not a file of plain tensors: reading it could run code, so it was "
            "rejected. Where you trust it, save its tensors alone: "
            "torch.save(checkpoint['model'], PATH), or checkpoint['state_dict'] if it is "
            "mmdetection's."
        ) from None
    except DamagedFileError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None
    except Exception as error:  # whatever torch's unpickler stumbles over in damaged bytes
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise CheckpointError(f"{path} can't be read as a checkpoint: {reason}.") from None
    for key in ("model", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds {type(data).__name__}, not named tensors.")
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
