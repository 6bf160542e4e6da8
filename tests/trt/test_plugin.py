"""What TensorRT gets from the plugins, asked for through its own Python bindings on stub libraries.

Whatever `tensorrt_bindings` comes first on the path is used; 10.9.0.34 and 11.4.0.106 were.
"""

import re
import shutil
import struct
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from condinst_infer.contract.metadata import metadata_from_props
from condinst_infer.cuda import kernels
from condinst_infer.cuda.kernels import ptx
from condinst_infer.errors import MissingExtraError, SessionError
from condinst_infer.trt import plugin
from tests.support import tensorrt_stubs

SOURCES = Path(__file__).parents[2] / "engines" / "kernels"
DTYPES = {"FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16)}
Node = dict[str, Any]  # as tests/support/tensorrt_stubs/host.py takes it
Sizes = dict[str, int]

# no two numbers of a node are equal, so that none can take the place of another
NMS = {"iou_threshold": [0.6], "max_detections": [100], "runs": [3]}
NARROW = {"stride": [8], "factor": [2], "depth": [3], "width": [7], "channels": [6]}
NARROW |= {"coordinates": [1], "use_features": [0]}
WIDE = NARROW | {"stride": [4], "factor": [1], "width": [16]}
WIDE |= {"coordinates": [0], "use_features": [1]}


def nms_node(n: int | str, m: int, attributes: dict, *sizes: Sizes) -> Node:
    inputs = [["FLOAT", [n, m, 4]], ["FLOAT", [n, m]], ["INT32", [n, m]]]
    return {"name": "ClassNMS", "attributes": attributes, "inputs": inputs, "sizes": sizes}


def mask_node(kind: str, dims: list[int | str], attributes: dict, *sizes: Sizes) -> Node:
    n, k, h, w = dims
    inputs = [[kind, [n, attributes["channels"][0], h, w]], [kind, [n, k, 169]]]
    inputs += [["FLOAT", [n, k, 2]], ["FLOAT", [n, k]], ["INT32", [n]]]
    return {"name": "DynamicMaskHead", "attributes": attributes, "inputs": inputs, "sizes": sizes}


DYNAMIC = ({"N": 1, "h": 9, "w": 10}, {"N": 2, "h": 64, "w": 86}, {"N": 13, "h": 97, "w": 33})
NODES = {
    "nms": nms_node("N", 3000, NMS, {"N": 1}, {"N": 7}),
    "nms of fixed size": nms_node(2, kernels.MAX_CANDIDATES, NMS, {}),
    "nms of too many": nms_node(2, kernels.MAX_CANDIDATES + 1, NMS, {}),
    "narrow": mask_node("FLOAT", ["N", 100, "h", "w"], NARROW, *DYNAMIC),
    "narrow in halves": mask_node("HALF", ["N", 100, "h", "w"], NARROW, *DYNAMIC),
    "wide": mask_node("HALF", ["N", 100, "h", "w"], WIDE, *DYNAMIC),
    "wide of fixed size": mask_node("FLOAT", [2, 100, 64, 86], WIDE, {}),
    "wide of fixed batch": mask_node("HALF", [2, "k", 64, "w"], WIDE, {"k": 100, "w": 86}),
}
NMS_NODES = ("nms", "nms of fixed size")
MASK_NODES = ("narrow", "narrow in halves", "wide", "wide of fixed size", "wide of fixed batch")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, nano_onnx: Path) -> dict[str, Any]:
    """What the host says of NODES, and of the attributes of an exported file."""
    if tensorrt_stubs.bindings_version() is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    folder = tmp_path_factory.mktemp("tensorrt")
    tensorrt_stubs.write_stubs(folder)
    nms, masks = (attributes(node) for node in exported_nodes(nano_onnx))
    nodes = NODES | {
        "exported nms": nms_node("N", 3000, nms, {"N": 5}),
        "exported masks": mask_node("FLOAT", ["N", 20, "h", "w"], masks, *DYNAMIC),
    }
    answer = tensorrt_stubs.built_by_host(folder, list(nodes.values()))
    return answer | {"nodes": dict(zip(nodes, answer["nodes"], strict=True))}


def exported_nodes(path: Path) -> list[onnx.NodeProto]:
    """ClassNMS and DynamicMaskHead of an exported file."""
    return [node for node in onnx.load(path).graph.node if node.domain == plugin.NAMESPACE]


def attributes(node: onnx.NodeProto) -> dict[str, list]:
    """Those with lists of numbers, by name."""
    lists = {a.name: list(a.floats) or list(a.ints) for a in node.attribute}
    return {name: values for name, values in lists.items() if values}


def dims_at(node: Node, index: int, sizes: Sizes) -> list[int]:
    """Dimensions of an input where the dynamic ones are `sizes`."""
    return [sizes[dim] if isinstance(dim, str) else dim for dim in node["inputs"][index][1]]


def mask_launch(node: Node, dtype: np.dtype, sizes: Sizes) -> kernels.Launch:
    """The launch for plain numbers."""
    n, _, h, w = dims_at(node, 0, sizes)
    settings = {name: values[0] for name, values in node["attributes"].items()}
    settings["coordinates"] = kernels.COORDINATES[settings["coordinates"]]
    k = dims_at(node, 1, sizes)[1]
    return kernels.dynamic_mask_head(n, k, h, w, dtype=dtype, **settings)


def nms_launch(node: Node, sizes: Sizes) -> kernels.Launch:
    """The launch for plain numbers."""
    settings = {name: values[0] for name, values in node["attributes"].items()}
    return kernels.class_nms(*dims_at(node, 1, sizes), **settings)


def check_launch(answer: dict[str, Any], index: int, launch: kernels.Launch) -> None:
    """What TensorRT was told for the sizes at `index` is `launch`."""
    geometry = {name: launch.grid[i] for i, name in enumerate(("grid_x", "grid_y", "grid_z"))}
    geometry |= {"block_x": launch.block, "block_y": 1, "block_z": 1, "shared_mem": 0}
    assert answer["geometry"][index] == geometry
    assert answer["scalars"][index] == list(launch.scalars)
    assert answer["kernel"] == launch.kernel
    assert answer["ptx"] == ptx(launch.source)


def test_each_is_registered_once_though_eight_threads_ask(told: dict[str, Any]) -> None:
    # 1 is FLOAT32 and 5 INT32 in TensorRT's PluginFieldType
    assert told["creators"].splitlines() == [
        "PLUGIN CREATOR_V3QUICK: condinst::ClassNMS/1 iou_threshold=1 max_detections=5 runs=5",
        "PLUGIN CREATOR_V3QUICK: condinst::DynamicMaskHead/1 stride=5 factor=5 depth=5 width=5 "
        "channels=5 coordinates=5 use_features=5",
        "PLUGIN CREATOR_V3QUICK: condinst::CandidateMaskHead/1 stride=5 factor=5 depth=5 width=5 "
        "channels=5 coordinates=5 use_features=5",
    ]
    assert told["registrations"] == 3


@pytest.mark.parametrize("nms", plugin.NODES)
def test_exported_nodes_carry_exactly_the_declared_attributes(
    nms: str, nano_onnx: Path, mask_nms_onnx: Path
) -> None:
    nodes = {n.op_type: n for n in exported_nodes(nano_onnx if nms == "box" else mask_nms_onnx)}
    if nms == "mask":  # nothing that TensorRT would look for a plugin by
        assert not {"plugin_namespace", "aot"} & {a.name for a in nodes.pop("MaskNMS").attribute}
    assert tuple(nodes) == plugin.NODES[nms]
    for known in (known for known in plugin.PLUGINS if known.name in nodes):
        by_name = {attribute.name: attribute for attribute in nodes[known.name].attribute}
        assert by_name.pop("plugin_namespace").s.decode() == plugin.NAMESPACE
        assert by_name.pop("aot").i == 1
        assert by_name.keys() == known.attributes.keys()
        for name, attribute in by_name.items():
            (dtype,) = typing.get_args(typing.get_args(known.attributes[name])[1])
            lists = {np.int32: attribute.ints, np.float32: attribute.floats}
            assert len(lists[dtype]) == 1, name


def test_tensors_have_the_names_and_order_of_the_function_bodies(
    nano_onnx: Path, mask_nms_onnx: Path
) -> None:
    paths = (nano_onnx, mask_nms_onnx)
    bodies = {body.name: body for path in paths for body in onnx.load(path).functions}
    for known in plugin.PLUGINS:
        assert tuple(bodies[known.name].input) == known.inputs
        assert tuple(bodies[known.name].output) == known.outputs


@pytest.mark.parametrize("name", NMS_NODES)
def test_nms_puts_out_indices_and_counts(told: dict[str, Any], name: str) -> None:
    answer, node = told["nodes"][name], NODES[name]
    assert answer["types"] == ["INT32", "INT32"]
    images = [dims_at(node, 0, sizes)[0] for sizes in node["sizes"]]
    assert answer["shapes"] == [[[n, 100] for n in images], [[n] for n in images]]


@pytest.mark.parametrize("name", MASK_NODES)
def test_masks_have_the_type_of_features_and_factor_times_their_size(
    told: dict[str, Any], name: str
) -> None:
    answer, node = told["nodes"][name], NODES[name]
    assert answer["types"] == [node["inputs"][0][0]]
    features = [dims_at(node, 0, sizes) for sizes in node["sizes"]]
    factor = node["attributes"]["factor"][0]
    assert answer["shapes"] == [[[n, 100, h * factor, w * factor] for n, _, h, w in features]]


def test_types_are_those_the_kernels_take(told: dict[str, Any]) -> None:
    for name, answer in told["nodes"].items():
        single = [["FLOAT", "FLOAT", "INT32", "INT32", "INT32"]]
        if "nms" not in name:
            single = [[t, t, "FLOAT", "FLOAT", "INT32", t] for t in ("FLOAT", "HALF")]
        if "error" not in answer:
            assert [launch["types"] for launch in answer["launches"]] == single
            assert {f for launch in answer["launches"] for f in launch["formats"]} == {"LINEAR"}


@pytest.mark.parametrize("name", NMS_NODES)
def test_nms_is_launched_as_everywhere(told: dict[str, Any], name: str) -> None:
    (answer,), node = told["nodes"][name]["launches"], NODES[name]
    for i, sizes in enumerate(node["sizes"]):
        check_launch(answer, i, nms_launch(node, sizes))


@pytest.mark.parametrize("name", MASK_NODES)
def test_mask_heads_are_launched_as_everywhere(told: dict[str, Any], name: str) -> None:
    node = NODES[name]
    for answer in told["nodes"][name]["launches"]:
        for i, sizes in enumerate(node["sizes"]):
            check_launch(answer, i, mask_launch(node, DTYPES[answer["types"][0]], sizes))


def test_a_launch_in_plain_numbers(told: dict[str, Any]) -> None:
    single, half = told["nodes"]["wide of fixed size"]["launches"]
    assert (single["kernel"], half["kernel"]) == (
        "dynamic_mask_head_16_f32",
        "dynamic_mask_head_16_f16",
    )
    for answer in (single, half):
        ((x, y, z, *block),) = (list(geometry.values()) for geometry in answer["geometry"])
        assert [x, y, z] == [200, 8, 3]  # 2 images x 100; tiles of 64 rows, of 86 columns
        assert block == [256, 1, 1, 0]


def test_attributes_of_an_exported_file_make_its_launches(
    told: dict[str, Any], nano_onnx: Path
) -> None:
    props = {p.key: p.value for p in onnx.load(nano_onnx).metadata_props}
    config = metadata_from_props(props, nano_onnx).config
    (nms,) = told["nodes"]["exported nms"]["launches"]
    launch = kernels.class_nms(
        5,
        3000,
        runs=len(config.heads.head_levels),
        max_detections=config.detect.max_detections,
        iou_threshold=config.detect.nms_iou,
    )
    check_launch(nms, 0, launch)
    for answer in told["nodes"]["exported masks"]["launches"]:
        dtype = DTYPES[answer["types"][0]]
        for i, sizes in enumerate(DYNAMIC):
            n, h, w = sizes.values()
            settings = config.mask_head_settings
            launch = kernels.dynamic_mask_head(n, 20, h, w, dtype=dtype, **settings)
            check_launch(answer, i, launch)


def parameter_names(source: str) -> list[str]:
    """Of the entry points in engines/kernels, all alike, in order."""
    text = (SOURCES / f"{source}.cu").read_text().replace("\\", " ")
    pattern = r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?\w+\(([^)]*)\)'
    (parameters,) = re.findall(pattern, text)
    return [parameter.split()[-1] for parameter in parameters.split(",")]


@pytest.mark.parametrize("name", [*NMS_NODES, *MASK_NODES])
def test_arguments_are_the_parameters_of_the_kernel(told: dict[str, Any], name: str) -> None:
    """Inputs, scalars, outputs: number and types as in the PTX, names as in the source."""
    node = NODES[name]
    known = next(p for p in plugin.PLUGINS if p.name == node["name"])
    for answer in told["nodes"][name]["launches"]:
        (entry,) = re.findall(rf"\.entry {answer['kernel']}\(([^)]*)\)", answer["ptx"])
        scalars = len(answer["scalars"][0])
        wanted = ["u64"] * len(known.inputs) + ["u32"] * scalars + ["u64"] * len(known.outputs)
        assert re.findall(r"\.param \.(\w+)", entry) == wanted
        names = parameter_names("class_nms" if name in NMS_NODES else "dynamic_mask_head")
        inputs, outputs = len(known.inputs), len(known.outputs)
        assert tuple(names[:inputs]) == known.inputs
        assert tuple(names[-outputs:]) == known.outputs
        for i, sizes in enumerate(node["sizes"]):
            values = named_values(node, sizes)
            assert answer["scalars"][i] == [values[n] for n in names[inputs:-outputs]]


def named_values(node: Node, sizes: Sizes) -> dict[str, int]:
    """What the sources call scalars, by name."""
    if node["name"] == "ClassNMS":
        (bits,) = struct.unpack("<i", struct.pack("<f", node["attributes"]["iou_threshold"][0]))
        (k,), (runs,) = node["attributes"]["max_detections"], node["attributes"]["runs"]
        return {"m": dims_at(node, 1, sizes)[1], "runs": runs, "k": k, "iou_bits": bits}
    _, _, h, w = dims_at(node, 0, sizes)
    settings = {name: values[0] for name, values in node["attributes"].items()}
    return {"k": dims_at(node, 1, sizes)[1], "h": h, "w": w, **settings}


def test_more_candidates_than_the_kernel_takes_stop_the_build(told: dict[str, Any]) -> None:
    assert "the NMS kernel takes 5120" in told["nodes"]["nms of too many"]["error"]


@pytest.mark.parametrize("version", ["8.6.1", "10.8.0.43"])
def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    with pytest.raises(SessionError, match=f"^TensorRT {version} .* 10.9 and newer can"):
        plugin.register()


def test_a_missing_tensorrt_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"condinst-infer\[tensorrt\]"):
        plugin.register()
