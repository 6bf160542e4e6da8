"""The intermediate stages of an artefact: what `compare` looks at.

Head outputs are the raw convolutions, [N, C, A] over all levels; then `mask_features`, candidates
before NMS, and whatever the graph puts out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from condinst_infer.engines.trt import TrtSession
from condinst_infer.errors import ModelFileError, require
from condinst_infer.metadata import Metadata

Stages = dict[str, np.ndarray]
HEADS = ("class_logits", "box_regression", "centreness")
# what goes into the nodes of a full graph
_STAGES = {
    "ClassNMS": ("candidate_boxes", "candidate_scores", "candidate_labels"),
    "CandidateMaskHead": (
        *("mask_features", "candidate_params", "candidate_centres"),
        *("candidate_sizes", "candidate_count"),
    ),
    "MaskNMS": ("candidate_masks", "candidate_scores", "candidate_labels"),
    "DynamicMaskHead": ("mask_features", "params", "centres", "sizes", "num_detections"),
}


class StageSource(Protocol):
    """An artefact whose stages can be seen."""

    metadata: Metadata

    def run(self, feeds: Mapping[str, np.ndarray]) -> Stages: ...
    def close(self) -> None: ...


def stages_of(path: str | Path, *, threads: int | None = None) -> StageSource:
    """The stages of a .safetensors, .onnx or .engine file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        require("torch", "export")
        from condinst_infer import checkpoint

        return TorchStages(checkpoint.load(path))
    if path.suffix == ".onnx":
        return OnnxStages(path, threads)
    if path.suffix == ".engine":
        return TrtSession(path)  # shows what it puts out, and nothing between
    raise ModelFileError(f"{path} can't be compared; it must be .onnx, .engine or .safetensors.")


class TorchStages:
    """The stages of a network in PyTorch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.metadata = Metadata(config=model.config)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Stages:
        import torch

        seen: dict[str, list[np.ndarray]] = {name: [] for name in HEADS}
        hooks = [
            getattr(self.model.fcos, name).register_forward_hook(
                lambda _m, _i, out, name=name: seen[name].append(out.flatten(2).numpy())
            )
            for name in HEADS
        ]
        try:
            with torch.inference_mode():
                images, sizes = (torch.from_numpy(feeds[n]) for n in ("images", "image_sizes"))
                raw = self.model.heads(images, sizes)  # one pass; `finish` equals `forward`
                outputs = self.model.before_nms(raw, sizes) | self.model.finish(raw, sizes)
        finally:
            for hook in hooks:
                hook.remove()
        parts = {name: np.concatenate(maps, 2) for name, maps in seen.items()}
        return parts | {name: tensor.numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Nothing to do: the network is the caller's."""


class OnnxStages:
    """The stages of an exported file: intermediate tensors become outputs of a copy in memory."""

    def __init__(self, path: Path, threads: int | None) -> None:
        onnx, ort = require("onnx", "export"), require("onnxruntime", "cpu")
        from condinst_infer.engines.ort import OrtSession

        self.metadata = OrtSession(path, threads=threads).metadata  # with all its checks
        proto = onnx.load(str(path))
        boxes = self.metadata.config.detect.nms == "box"
        heads = [name for name in HEADS if boxes or name != "box_regression"]
        self._heads = {name: _head_outputs(proto, name) for name in heads}
        self._inner = _inner_tensors(proto)
        have = {output.name for output in proto.graph.output}
        for name in [*sum(self._heads.values(), []), *self._inner.values()]:
            if name not in have:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(proto.SerializeToString(), options)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Stages:
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        stages = {
            head: np.concatenate([found[n].reshape(*found[n].shape[:2], -1) for n in levels], 2)
            for head, levels in self._heads.items()
        }
        stages |= {stage: found[name] for stage, name in self._inner.items()}
        inner = {*self._inner.values(), *sum(self._heads.values(), [])}
        return stages | {name: value for name, value in found.items() if name not in inner}

    def close(self) -> None:
        """Nothing to do: the runtime frees its session with this object."""


def _head_outputs(proto: Any, head: str) -> list[str]:
    """What a predictor puts out, finest level first."""
    prefix = f"fcos/{head}/Conv"
    names = [name for n in proto.graph.node for name in n.output if name.startswith(prefix)]
    if not names:
        raise ModelFileError(f"the graph has no {prefix}; export it again with this version.")
    return names


def _inner_tensors(proto: Any) -> dict[str, str]:
    """Stages that a full graph passes between its nodes; a detector graph puts them out.

    The candidates of a graph with mask NMS are those that get masks, not all.
    """
    inner = {}
    for node in proto.graph.node:
        if node.op_type in _STAGES:
            inner |= dict(zip(_STAGES[node.op_type], node.input, strict=True))
        if node.op_type in ("ClassNMS", "MaskNMS"):
            inner |= dict(zip(("keep", "kept_scores"), node.output[:-1], strict=False))
    return inner
