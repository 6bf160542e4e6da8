"""The detector cut of a full ONNX file, made in memory: for GPUs whose kernels do what follows it.

The file computes mask head parameters only where NMS kept an instance, as a matrix product; the
cut needs them everywhere, so the product becomes the convolution it was in training again.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from condinst_infer.contract.metadata import metadata_from_props, model_props, onnx_errors
from condinst_infer.contract.tensors import contract_outputs
from condinst_infer.contract.weights_sha256 import check_onnx_weights
from condinst_infer.errors import ModelFileError, require
from condinst_infer.system.paths import check_readable_file

_DOMAIN = "condinst"
_PARAMS_MAP = "params_map"
# between the indices that NMS gives and the GatherElements that read by them
_OF_INDICES = ("Cast", "Max", "Clip", "Where", "Unsqueeze", "Expand", "Identity")


def detector_from_full(path: Path) -> bytes | None:
    """The ONNX file `path` up to NMS, serialised; None if it ends there already.

    Raises:
        ModelFileError: missing, not ours, a weight is not finite, or its nodes are not those of an
            export.
        MissingExtraError: the package onnx is not installed.
    """
    onnx = require("onnx", "gpu")
    check_readable_file(path, ModelFileError)
    with onnx_errors(path):
        proto = onnx.load(path)
    props = model_props(proto)
    metadata = metadata_from_props(props, path)
    check_onnx_weights(proto, path)
    if metadata.graph != "full":
        return None
    metadata = replace(metadata, graph="detector")
    graph = _Graph(proto, onnx)
    try:
        if metadata.standard_ops:
            raise _OtherNodesError("it was exported with --standard-ops; take the plain file")
        graph.cut(metadata)
    except _OtherNodesError as error:
        raise ModelFileError(
            f"{path} can't be cut before NMS for a GPU: {error}. Export that cut from the "
            "checkpoint: condinst export MODEL.safetensors -o DETECTOR.onnx --graph detector"
        ) from None
    onnx.helper.set_model_props(proto, {**props, **metadata.to_props()})
    return proto.SerializeToString()


class _OtherNodesError(Exception):
    """The graph is not as `condinst export` writes it."""


class _Graph:
    """The graph of a full file, which `cut` changes."""

    def __init__(self, proto: Any, onnx: Any) -> None:
        self._proto, self._graph, self._onnx = proto, proto.graph, onnx
        self._arrays = {tensor.name: tensor for tensor in self._graph.initializer}
        self._producers: dict[str, Any] = {}
        self._consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self._graph.node:
            self._producers |= dict.fromkeys(node.output, node)
            for name in node.input:
                self._consumers[name].append(node)

    def cut(self, metadata: Any) -> None:
        """Make the outputs those of a detector graph, and drop what none of them needs."""
        by_masks = metadata.config.detect.nms == "mask"
        head = self._ours("CandidateMaskHead" if by_masks else "DynamicMaskHead")
        names = self._candidates_by_masks() if by_masks else self._candidates_by_boxes()
        names[head.input[0]] = "mask_features"
        controller = self._controller(head.input[1], len(metadata.config.strides))
        wanted = contract_outputs(metadata)
        self._graph.node.extend(controller)
        for node in self._graph.node:
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(name, name) for name in tensors]
        self._set_outputs(wanted)
        self._drop_unused(wanted)

    def _candidates_by_boxes(self) -> dict[str, str]:
        """The contract's names of candidates, by those in the graph."""
        boxes, scores, labels = self._ours("ClassNMS").input[:3]
        gathered = self._gathered_by(self._ours("ClassNMS").output[0])
        (locations,) = self._only(gathered - {boxes, scores, labels})
        return {
            boxes: "candidate_boxes",
            scores: "candidate_scores",
            labels: "candidate_labels",
            locations: "candidate_locations",
        }

    def _candidates_by_masks(self) -> dict[str, str]:
        """The same where the best are found first, and then their masks compared."""
        _, best_scores, best_labels = self._ours("MaskNMS").input[:3]
        best = self._producer(best_scores, "TopK")
        labels = self._producer(best_labels, "GatherElements").input[0]
        (locations,) = self._only(self._gathered_by(best.output[1]) - {labels})
        return {
            best.input[0]: "candidate_scores",
            labels: "candidate_labels",
            locations: "candidate_locations",
        }

    def _controller(self, params: str, levels: int) -> list[Any]:
        """Nodes that compute `params_map` [N, P, A], from what computes `params` [N, K, P]."""
        product, bias = self._producer(params, "Add", "MatMul"), None
        if product.op_type == "Add":
            (bias,) = self._only({name for name in product.input if name in self._arrays})
            (params,) = self._only(set(product.input) - {bias})
            product = self._producer(params, "MatMul")
        features = [*self._sampled(self._patches(product.input[0]))]
        if len(features) != levels:
            raise _OtherNodesError(f"the controller reads {len(features)} of {levels} levels")
        flat = self._constant(product.input[1])  # [C * 9, P]
        weight = np.ascontiguousarray(flat.T).reshape(flat.shape[1], -1, 3, 3)
        make, arrays = self._onnx.helper.make_node, self._onnx.numpy_helper
        shape = np.array([0, len(weight), -1], np.int64)
        names = [f"controller/{name}" for name in ("weight", "shape")]
        for name, value in zip(names, (weight, shape), strict=True):
            self._graph.initializer.append(arrays.from_array(value, name))
        given = [names[0]] + ([] if bias is None else [bias])
        nodes, maps = [], []
        for level, feature in enumerate(features):
            conv, rows = f"controller/Conv_{level}", f"controller/Reshape_{level}"
            nodes += [
                make("Conv", [feature, *given], [conv], name=conv, pads=[1, 1, 1, 1]),
                make("Reshape", [conv, names[1]], [rows], name=rows),
            ]
            maps.append(rows)
        return [*nodes, make("Concat", maps, [_PARAMS_MAP], name=_PARAMS_MAP, axis=2)]

    def _patches(self, name: str) -> str:
        """The sum [N, C, K * 9] over levels, which `name` [N, K, C * 9] is another order of."""
        for kinds in (("Reshape",), ("Transpose",), ("Reshape",)):
            name = self._producer(name, *kinds).input[0]
        return name

    def _sampled(self, name: str) -> Iterator[str]:
        """The map [N, C, h, w] of each level that is sampled in the sum `name`, in its order."""
        node = self._producer(name, "Add", "Mul")
        if node.op_type == "Add":
            for part in node.input:
                yield from self._sampled(part)
            return
        (sampled,) = self._only({n for n in node.input if self._kind(n) == "GatherElements"})
        cells = self._producer(sampled, "GatherElements").input[0]
        yield self._producer(cells, "Reshape").input[0]

    def _constant(self, name: str) -> np.ndarray:
        """The value of `name`, which only constants go into."""
        if name in self._arrays:
            return self._onnx.numpy_helper.to_array(self._arrays[name])
        node = self._producer(name, "Reshape", "Transpose", "Identity")
        value = self._constant(node.input[0])
        if node.op_type == "Reshape":
            return value.reshape(self._constant(node.input[1]))
        if node.op_type == "Transpose":
            orders = [list(a.ints) for a in node.attribute if a.name == "perm"]
            return value.transpose(orders[0] if orders else None)
        return value

    def _gathered_by(self, indices: str) -> set[str]:
        """All that is read by `indices`, as they are or shaped and typed otherwise."""
        found, waiting, seen = set(), [indices], set()
        while waiting:
            name = waiting.pop()
            for node in self._consumers[name]:
                if node.op_type == "GatherElements" and node.input[1] == name:
                    found.add(node.input[0])
                elif node.op_type in _OF_INDICES and node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append(node.output[0])
        return found

    def _ours(self, kind: str) -> Any:
        """The one node of our domain of this kind."""
        nodes = [n for n in self._graph.node if (n.domain, n.op_type) == (_DOMAIN, kind)]
        if len(nodes) != 1:
            raise _OtherNodesError(f"it has {len(nodes)} nodes {kind}")
        return nodes[0]

    def _kind(self, name: str) -> str | None:
        node = self._producers.get(name)
        return None if node is None else node.op_type

    def _producer(self, name: str, *kinds: str) -> Any:
        """The node that makes `name`, which must be of one of `kinds`."""
        node = self._producers.get(name)
        if node is None or node.op_type not in kinds:
            found = "no node" if node is None else f"the {node.op_type} {node.name}"
            raise _OtherNodesError(f"{' or '.join(kinds)} is expected to make {name}, not {found}")
        return node

    @staticmethod
    def _only(names: set[str]) -> set[str]:
        if len(names) != 1:
            raise _OtherNodesError(f"one tensor is expected where it has {sorted(names)}")
        return names

    def _set_outputs(self, wanted: Any) -> None:
        """Declare the outputs of the contract; what is there already keeps its shape."""
        helper, known = self._onnx.helper, {value.name: value for value in self._graph.output}
        outputs = [
            known.get(name)
            or helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(spec.dtype), spec.shape
            )
            for name, spec in wanted.items()
        ]
        del self._graph.output[:]
        self._graph.output.extend(outputs)
        del self._graph.value_info[:]  # of tensors that have other names now, or are no more

    def _drop_unused(self, wanted: Iterable[str]) -> None:
        """Keep the nodes and constants that `wanted` needs; nodes are in an order that runs."""
        needed, nodes = set(wanted), []
        for node in reversed(self._graph.node):
            if needed & set(node.output):
                needed.update(node.input)
                nodes.append(self._copy(node))
        constants = [self._copy(t) for t in self._graph.initializer if t.name in needed]
        del self._graph.node[:], self._graph.initializer[:], self._proto.functions[:]
        self._graph.node.extend(reversed(nodes))
        self._graph.initializer.extend(constants)
        opsets = [self._copy(o) for o in self._proto.opset_import if o.domain != _DOMAIN]
        del self._proto.opset_import[:]
        self._proto.opset_import.extend(opsets)

    @staticmethod
    def _copy(message: Any) -> Any:
        copy = type(message)()
        copy.CopyFrom(message)
        return copy
