"""`condinst info --verify`: the weights of a model file beside what was written with them."""

import json
from pathlib import Path

from condinst_infer.contract.metadata import is_unbroken, model_props, onnx_errors
from condinst_infer.contract.model_file import ModelFile, kind_of
from condinst_infer.contract.weights_sha256 import (
    WEIGHTS_KEY,
    check_onnx_weights,
    onnx_weights_sha256,
)
from condinst_infer.errors import ModelFileError, require
from condinst_infer.system.paths import check_readable_file, is_file

MATCH, CHANGED, NONE = "match", "changed", "no checksum"
_TEXTS = {
    MATCH: "{} is as it was written: its {} the SHA-256 inside.",
    CHANGED: "{} was changed after it was written: its {} the SHA-256 inside.",
    NONE: "{} was written without a SHA-256 of its weights.",
}


def verify(path: Path, *, as_json: bool) -> int:
    """Print one line about a model file; the exit status is 1 if it was changed.

    Raises:
        CheckpointError, ModelFileError: it can't be read, or a weight is not finite.
    """
    verdict, what = _READERS[kind_of(path)](path)
    if as_json:
        print(json.dumps({"file": str(path), "verify": verdict}))
    else:
        print(f"{verdict}: {what}")
    return int(verdict == CHANGED)


def _verify_onnx(path: Path) -> tuple[str, str]:
    """The verdict on weights and metadata, and a sentence."""
    onnx = require("onnx", "export")
    check_readable_file(path, ModelFileError)
    with onnx_errors(path):
        model = onnx.load(str(path))
        found = onnx_weights_sha256(model)
    check_onnx_weights(model, path)
    props = model_props(model)
    for key in props:
        if f"{key}_sha256" in props and not is_unbroken(key, props):
            return CHANGED, f"the metadata {key} of {path} was changed after it was written."
    if WEIGHTS_KEY not in props:
        return NONE, _TEXTS[NONE].format(path)
    return _judge(path, found == props[WEIGHTS_KEY])


def _verify_checkpoint(path: Path) -> tuple[str, str]:
    """The verdict on the weights, and a sentence."""
    for module in ("torch", "safetensors"):
        require(module, "export")
    from condinst_infer import checkpoint

    matches = checkpoint.weights_match(path)
    if matches is None:
        return NONE, _TEXTS[NONE].format(path)
    return _judge(path, matches)


def _verify_engine(path: Path) -> tuple[str, str]:
    """The verdict on the engine and its sidecar, and a sentence."""
    from condinst_infer.trt import sidecar

    try:
        sidecar.read(path)
    except ModelFileError as error:
        if is_file(path) and is_file(sidecar.sidecar_path(path)):
            return CHANGED, str(error)
        raise
    return MATCH, f"{path} is as it was built: it has the SHA-256 in its sidecar."


def _judge(path: Path, matches: bool) -> tuple[str, str]:
    verb = "weights have" if matches else "weights don't have"
    verdict = MATCH if matches else CHANGED
    return verdict, _TEXTS[verdict].format(path, verb)


_READERS = {
    ModelFile.ONNX: _verify_onnx,
    ModelFile.CHECKPOINT: _verify_checkpoint,
    ModelFile.ENGINE: _verify_engine,
}
