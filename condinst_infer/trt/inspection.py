"""Inspection of a parsed or built graph: its precision, and the nodes that are our kernels."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from condinst_infer.errors import SessionError
from condinst_infer.system.json_text import parse_json
from condinst_infer.trt.libraries import create, error_log

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16"}
_HALF = re.compile("half|fp16", re.IGNORECASE)
_INT8 = re.compile(r"\bint8", re.IGNORECASE)  # not the uint8 of the images


@dataclass(frozen=True)
class BuiltGraph:
    """Facts about a graph, and where they were read."""

    precision: str
    plugin: tuple[str, ...]  # nodes that are our kernels
    source: str  # "engine", or "network": as it was parsed, before the builder had it
    scratch_bytes: int | None = None  # of device memory, for the largest shapes; None: not known


def read_network(trt: ModuleType, network: Any, nodes: Sequence[str]) -> BuiltGraph:
    """Inspect a parsed graph; `nodes` are those that our kernels can be.

    Networks are strongly typed, so the types of the convolutions are those the builder keeps. One
    that reads dequantised values is an int8 convolution; a network with some is int8.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = trt.LayerType
    dequantised = {x.get_output(0).name for x in layers if x.type == kinds.DEQUANTIZE}
    convolutions = [x for x in layers if x.type == kinds.CONVOLUTION]
    types: set[str] = {layer.get_output(0).dtype.name for layer in convolutions}
    precision = " and ".join(sorted(_PRECISIONS.get(kind, kind.lower()) for kind in types))
    if any(layer.get_input(0).name in dequantised for layer in convolutions):
        precision = "int8"
    return BuiltGraph(precision, _plugins([layer.name for layer in layers], nodes), "network")


def read_engine(trt: ModuleType, engine: bytes, parsed: BuiltGraph) -> tuple[BuiltGraph, str]:
    """Inspect an engine built from `parsed`; with the reason if it can't be loaded here.

    How an engine describes its layers differs between versions and is nobody's promise: only what
    it says clearly overrules what was parsed.
    """
    runtime = create(trt, "Runtime")  # has to outlive the engine
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        return parsed, error_log(trt).pop_first(default=f"{trt.__name__} can't load it on this GPU")
    parsed = replace(parsed, scratch_bytes=int(loaded.device_memory_size_v2))
    inspector = loaded.create_engine_inspector()
    try:
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        said = parse_json(text, "the inspector's text", SessionError)
        layers = [layer for layer in said["Layers"] if isinstance(layer, dict)]
    except (SessionError, KeyError, TypeError):
        return parsed, ""
    outputs = [layer.get("Outputs") for layer in layers]
    types = [_type(tensor) for some in outputs if isinstance(some, list) for tensor in some]
    text = "\n".join(f"{layer.get('Name', '')} {layer.get('Metadata', '')}" for layer in layers)
    if not any(map(str.strip, types)):
        return parsed, ""
    small = ("int8", _INT8), ("fp16", _HALF)
    precision = next((name for name, said in small if any(map(said.search, types))), "fp32")
    plugin = tuple(node for node in parsed.plugin if f"{node}/" not in text)
    silent = precision == parsed.precision and not all(node in text for node in plugin)
    source = "network" if silent else "engine"
    return replace(parsed, precision=precision, plugin=plugin, source=source), ""


def _plugins(names: Iterable[str], nodes: Sequence[str]) -> tuple[str, ...]:
    """The `nodes` that are one layer; a body's layers are called NODE/something."""
    text = "\n".join(names)
    return tuple(node for node in nodes if node in text and f"{node}/" not in text)


def _type(tensor: Any) -> str:
    """Type and memory format as the inspector words them; TensorRT 11 has two keys for it."""
    keys = ("Format/Datatype", "Format", "DataType", "Datatype")
    return " ".join(str(tensor.get(key, "")) for key in keys)
