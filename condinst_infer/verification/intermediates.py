"""The intermediate stages of an artefact: what `compare` looks at.

Head outputs are the raw convolutions, [N, C, A] over all levels; then `mask_features`, candidates
before NMS, and whatever the graph puts out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from condinst_infer.config.model import DetectConfig
from condinst_infer.contract.metadata import Metadata, metadata_from_props, model_props
from condinst_infer.contract.model_file import ModelFile, kind_of
from condinst_infer.contract.tensors import NODE_INPUTS, NODE_OUTPUTS, TAIL
from condinst_infer.errors import ModelFileError, require
from condinst_infer.runtimes.ort import OrtSession
from condinst_infer.system.paths import check_readable_file

Feeds = Mapping[str, np.ndarray]
Intermediates = dict[str, np.ndarray]
HEADS = ("class_logits", "box_regression", "centreness")


class Lift(NamedTuple):
    """Numbers added to two kinds of logits, so that an input shows the network something."""

    class_logits: float = 0.0
    centreness: float = 0.0


class IntermediateSource(Protocol):
    """An artefact whose stages can be seen."""

    metadata: Metadata

    def run(self, feeds: Feeds) -> Intermediates: ...
    def close(self) -> None: ...


def open_intermediates(path: str | Path, *, threads: int | None = None) -> IntermediateSource:
    """The stages of a .safetensors, .onnx or .engine file."""
    path, kind = Path(path), kind_of(path)
    if kind is ModelFile.CHECKPOINT:
        require("torch", "export")
        from condinst_infer import checkpoint

        return TorchIntermediates(checkpoint.load(path))
    if kind is ModelFile.ONNX:
        return OnnxIntermediates(path, threads)
    from condinst_infer.runtimes.tensorrt import TrtSession

    return TrtSession(path)  # shows the outputs, and nothing between


def has_candidates(stages: Intermediates) -> bool:
    """True if any (location, class) pair passed the score threshold."""
    return bool((stages["candidate_scores"] > 0).any())


def lift_for(stages: Intermediates, detect: DetectConfig) -> Lift:
    """Numbers to add to the logits in `stages` so that the slots of each image are filled.

    A class score and a centreness above the root of the threshold have a product above it.
    """
    wanted = 0.5 + 0.5 * detect.score_threshold**0.5
    logit = float(np.log(wanted / (1 - wanted)))
    logits = stages["class_logits"].astype(np.float64)
    logits = np.sort(logits.reshape(len(logits), -1), 1)[:, ::-1]  # [N, C*A], falling
    enough = logits[:, min(4 * detect.max_detections, logits.shape[1]) - 1]  # half lack centreness
    centreness = np.median(stages["centreness"].astype(np.float64))
    return Lift(max(0.0, logit - float(enough.min())), max(0.0, logit - float(centreness)))


class TorchIntermediates:
    """The stages of a network in PyTorch."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.metadata = Metadata(config=model.config)
        self._seen: tuple[Feeds, Any, Intermediates] | None = None

    def run(self, feeds: Feeds) -> Intermediates:
        return self.run_with_lift(feeds, Lift())

    def run_with_lift(self, feeds: Feeds, lift: Lift) -> Intermediates:
        """The stages of an input; of the one before, only what comes after the lift is new."""
        import torch

        with torch.inference_mode():
            raw, parts = self._heads(feeds)
            raw = raw._replace(
                class_logits=tuple(level + lift.class_logits for level in raw.class_logits),
                centreness=tuple(level + lift.centreness for level in raw.centreness),
            )
            outputs = self.model.stages(raw, torch.from_numpy(feeds["image_sizes"]))
        parts = {name: part + getattr(lift, name, 0.0) for name, part in parts.items()}
        return parts | {name: tensor.numpy() for name, tensor in outputs.items()}

    def _heads(self, feeds: Feeds) -> tuple[Any, Intermediates]:
        """Raw outputs of the network, and of its predictors."""
        import torch

        if self._seen is not None and self._seen[0] is feeds:
            return self._seen[1:]
        seen: dict[str, list[np.ndarray]] = {name: [] for name in HEADS}
        hooks = [
            getattr(self.model.fcos, name).register_forward_hook(
                lambda _m, _i, out, name=name: seen[name].append(out.flatten(2).numpy())
            )
            for name in HEADS
        ]
        try:
            images, sizes = (torch.from_numpy(feeds[n]) for n in ("images", "image_sizes"))
            raw = self.model.heads(images, sizes)
        finally:
            for hook in hooks:
                hook.remove()
        self._seen = feeds, raw, {name: np.concatenate(maps, 2) for name, maps in seen.items()}
        return self._seen[1:]

    def close(self) -> None:
        """Nothing to do: the network is the caller's."""


def load_proto(path: Path) -> Any:
    """The ONNX model in a file.

    Raises:
        ModelFileError: it can't be read.
        MissingExtraError: the package onnx is not installed.
    """
    onnx = require("onnx", "export")
    check_readable_file(path, ModelFileError)
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # of the file system or of protobuf
        OrtSession(path)  # says the same in one sentence
        raise ModelFileError(f"{path} can't be read: {error}.") from None
    if not proto.HasField("graph"):  # an empty file is a message without fields
        raise ModelFileError(f"{path} is no ONNX file: it has no graph.")
    return proto


class OnnxIntermediates:
    """The stages of an exported file, from one session of a copy in memory.

    Intermediate tensors become outputs of the copy, and what is added to its logits inputs.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        onnx = require("onnx", "export")
        proto = load_proto(path)
        props = model_props(proto)
        self.metadata = metadata_from_props(props, path)
        boxes = self.metadata.config.detect.nms == "box"
        heads = [name for name in HEADS if boxes or name != "box_regression"]
        self._heads = {name: _head_outputs(proto, name) for name in heads}
        self._inner = _inner_tensors(proto)
        self._dtype = np.dtype(np.float16 if self.metadata.precision == "fp16" else np.float32)
        for name in Lift._fields:
            _add_lift(onnx, proto, self._heads[name], _lift_input(name), self._dtype)
        contract = {output.name for output in proto.graph.output}
        inner = {*self._inner.values(), *sum(self._heads.values(), [])} - contract
        for name in sorted(inner):
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self._outputs = [output.name for output in proto.graph.output]
        self._session = OrtSession(
            path,
            threads=threads,
            graph=proto.SerializeToString(),
            extra=inner | {_lift_input(name) for name in Lift._fields},
        )

    def run(self, feeds: Feeds) -> Intermediates:
        return self.run_with_lift(feeds, Lift())

    def run_with_lift(self, feeds: Feeds, lift: Lift) -> Intermediates:
        """The stages of an input whose logits are lifted."""
        lifts = {_lift_input(k): np.array(v, self._dtype) for k, v in lift._asdict().items()}
        found = self._session.evaluate(self._outputs, {**feeds, **lifts})
        stages = {
            head: np.concatenate([found[n].reshape(*found[n].shape[:2], -1) for n in levels], 2)
            for head, levels in self._heads.items()
        }
        stages |= {stage: found[name] for stage, name in self._inner.items()}
        inner = {*self._inner.values(), *sum(self._heads.values(), [])}
        return stages | {name: value for name, value in found.items() if name not in inner}

    def close(self) -> None:
        self._session.close()


def _head_outputs(proto: Any, head: str) -> list[str]:
    """Output names of the convolutions of a predictor, finest level first."""
    prefix = f"fcos/{head}/Conv"
    names = [name for n in proto.graph.node for name in n.output if name.startswith(prefix)]
    if not names:
        raise ModelFileError(f"the graph has no {prefix}; export it again with this version.")
    return names


def _lift_input(head: str) -> str:
    """Name of the input that is added to the logits of a predictor."""
    return f"fcos/{head}/lift"


def _add_lift(onnx: Any, proto: Any, tensors: list[str], name: str, dtype: np.dtype) -> None:
    """Add an input `name`, 0 by default, to each of `tensors`, which keep their names."""
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), dtype), name))
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, ()))
    nodes = []
    for node in proto.graph.node:
        nodes.append(node)
        for i, output in enumerate(node.output):
            if output in tensors:
                node.output[i] = f"{output}/unlifted"
                nodes.append(onnx.helper.make_node("Add", [node.output[i], name], [output]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _inner_tensors(proto: Any) -> dict[str, str]:
    """Stages that a full graph passes between its nodes; a detector graph puts them out.

    The candidates of a graph with mask NMS are those that get masks, not all.
    """
    named = (*NODE_INPUTS.values(), *NODE_OUTPUTS.values())
    bare = {f"{TAIL}{stage}": stage for names in named for stage in names}
    inner = {}
    for node in proto.graph.node:
        inner |= dict(zip(NODE_INPUTS.get(node.op_type, ()), node.input, strict=False))
        inner |= dict(zip(NODE_OUTPUTS.get(node.op_type, ()), node.output, strict=False))
        # of standard operators, which stand in the place of these nodes
        inner |= {bare[name]: name for name in node.output if name in bare}
    return inner
