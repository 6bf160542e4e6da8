"""The kinds of files that come from outside, each with a real one and the command that reads it."""

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from PIL import Image

from condinst_infer.config.model import CondInstConfig
from condinst_infer.config.presets import preset
from condinst_infer.contract.metadata import KEY
from condinst_infer.trt import sidecar
from tests.support.bright_model import bright_config, write_bright_model

DATA = Path(__file__).parents[1] / "data"
Command = Sequence[str] | Callable[[], object]


class Kind(NamedTuple):
    """A kind of file; `value` is its JSON, `data` its bytes, None where one is not mutated."""

    value: Any
    data: bytes | None
    command: Callable[[str | bytes], Command]  # writes the file and gives the command


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")


def _small_config() -> CondInstConfig:
    return bright_config()


def _plain(config: CondInstConfig) -> dict[str, Any]:
    return json.loads(config.to_json())


def _onnx_with(model: onnx.ModelProto, path: Path, key: str, text: str) -> Path:
    """A copy of `model` with `text` under `key` of its metadata, and the digest of that text."""
    text = text.encode(errors="replace").decode()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [p for p in model.metadata_props if p.key not in (key, f"{key}_sha256")]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    copy.metadata_props.add(key=key, value=text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    copy.metadata_props.add(key=f"{key}_sha256", value=digest)
    path.write_bytes(copy.SerializeToString())
    return path


def onnx_metadata(folder: Path) -> Kind:
    """The contract in an ONNX file, sealed again."""
    path = write_bright_model(folder / "real.onnx")
    model = onnx.load(path)
    props = {p.key: p.value for p in model.metadata_props}

    def command(content: str | bytes) -> Command:
        assert isinstance(content, str)
        made = _onnx_with(model, folder / "model.onnx", KEY, content)
        return ["info", str(made), *(["--json"] if len(content) % 2 else [])]

    return Kind(json.loads(props[KEY]), None, command)


def onnx_bytes(folder: Path) -> Kind:
    """A whole ONNX file."""
    path = write_bright_model(folder / "real.onnx")

    def command(content: str | bytes) -> Command:
        (folder / "model.onnx").write_bytes(_bytes(content))
        return ["info", str(folder / "model.onnx")]

    return Kind(None, path.read_bytes(), command)


def self_test(folder: Path) -> Kind:
    """The self-test in an ONNX file, sealed again, read and run."""
    from condinst_infer.errors import ParityError
    from condinst_infer.runtimes.ort import OrtSession
    from condinst_infer.verification import self_test as module

    session = OrtSession(write_bright_model(folder / "real.onnx"), threads=1)
    real = module.self_test_of(session, session.metadata)
    value = json.loads(real.to_props()[module.KEY])

    def command(content: str | bytes) -> Command:
        assert isinstance(content, str)
        text = content.encode(errors="replace").decode()
        digest = hashlib.sha256(text.encode()).hexdigest()
        props = {module.KEY: text, f"{module.KEY}_sha256": digest}

        def run() -> None:
            found = module.self_test_from_props(props, "model.onnx")
            assert found is not None
            try:
                module.check(session, found)
            except ParityError:
                pass

        return run

    return Kind(value, None, command)


def _safetensors(header: str | bytes, data: bytes) -> bytes:
    raw = _bytes(header)
    return struct.pack("<Q", len(raw)) + raw + data


def _header(config: CondInstConfig) -> dict[str, Any]:
    first = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    second = {"dtype": "I64", "shape": [], "data_offsets": [24, 32]}
    return {"__metadata__": {KEY: config.to_json()}, "a.weight": first, "a.count": second}


def checkpoint_header(folder: Path) -> Kind:
    """The header of a checkpoint, and the bytes of a whole one."""
    path = folder / "model.safetensors"
    header = _header(_small_config())
    whole = _safetensors(json.dumps(header), bytes(32))

    def command(content: str | bytes) -> Command:
        is_whole = isinstance(content, bytes)
        path.write_bytes(content if is_whole else _safetensors(content, bytes(32)))
        return ["info", str(path)]

    return Kind(header, whole, command)


def checkpoint_config(folder: Path) -> Kind:
    """The configuration in a checkpoint, through `info` or as it is loaded."""
    from condinst_infer import checkpoint

    path = folder / "model.safetensors"
    config = _small_config()

    def command(content: str | bytes) -> Command:
        assert isinstance(content, str)
        header = _header(config)
        header["__metadata__"][KEY] = content.encode(errors="replace").decode()
        path.write_bytes(_safetensors(json.dumps(header), bytes(32)))
        if len(content) % 2:
            return ["info", str(path)]
        return lambda: checkpoint.load(path)

    return Kind(_plain(config), None, command)


def engine_sidecar(folder: Path) -> Kind:
    """The sidecar of an engine, sealed again, and its bytes as they are."""
    from condinst_infer.trt.shape_profile import ShapeProfile

    engine, path = folder / "m.engine", folder / "m.engine.json"
    engine.write_bytes(b"engine")
    model = onnx.load(write_bright_model(folder / "m.onnx"))
    props = {p.key: p.value for p in model.metadata_props}
    real = sidecar.Sidecar(
        onnx="m.onnx",
        onnx_sha256="0" * 64,
        props=props,
        engine_sha256=hashlib.sha256(b"engine").hexdigest(),
        engine_bytes=6,
        runtime="tensorrt",
        runtime_version="10.9.0",
        gpu=sidecar.Gpu("GPU", (8, 9), "12.8"),
        profile=ShapeProfile((1, 64, 64), (1, 96, 160), (2, 160, 160)),
        precision_built="fp32",
        plugin=("a",),
        inspected="engine",
        smoke_run="passed",
        scratch_bytes=None,
    )

    def command(content: str | bytes) -> Command:
        if isinstance(content, str):
            try:
                data = json.loads(content)
                data.pop(sidecar.DIGEST)
                sealed = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
                content = f'{content[:-1]}, "{sidecar.DIGEST}": "{sealed}"}}'  # the last counts
            except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
                pass
        path.write_bytes(_bytes(content))
        return ["info", str(engine)]

    return Kind(json.loads(real.to_json()), real.to_json().encode(), command)


def _coco() -> dict[str, Any]:
    content = json.loads((DATA / "coco8/instances.json").read_text())
    ids = [image["id"] for image in content["images"][:2]]
    content["images"] = content["images"][:2]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids][:4]
    return content


def _results(content: dict[str, Any]) -> list[dict[str, Any]]:
    from condinst_infer.datasets.coco import rle_from_segmentation

    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rows = []
    for row in content["annotations"]:
        rle = rle_from_segmentation(row["segmentation"], sizes[row["image_id"]])
        counts = rle["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        common = {name: row[name] for name in ("image_id", "category_id", "bbox")}
        mask = {"size": [*map(int, rle["size"])], "counts": text}
        rows.append({**common, "score": 0.5, "segmentation": mask})
    return rows


def detections(folder: Path) -> Kind:
    """Detections that are evaluated."""
    truth, path = folder / "truth.json", folder / "detections.json"
    content = _coco()
    truth.write_text(json.dumps(content))
    rows = _results(content)

    def command(content: str | bytes) -> Command:
        path.write_bytes(_bytes(content))
        return ["eval", str(path), "--annotations", str(truth)]

    return Kind(rows, json.dumps(rows).encode(), command)


def ground_truth(folder: Path) -> Kind:
    """COCO annotations that results are evaluated against."""
    truth, path = folder / "truth.json", folder / "detections.json"
    value = _coco()
    path.write_text(json.dumps(_results(value)))

    def command(content: str | bytes) -> Command:
        truth.write_bytes(_bytes(content))
        return ["eval", str(path), "--annotations", str(truth)]

    return Kind(value, json.dumps(value).encode(), command)


def training_data(folder: Path) -> Kind:
    """COCO annotations as a training reads them."""
    from condinst_infer.train.records import read_coco

    path, value = folder / "truth.json", _coco()

    def command(content: str | bytes) -> Command:
        path.write_bytes(_bytes(content))
        return lambda: read_coco(path, DATA / "coco8/images")

    return Kind(value, json.dumps(value).encode(), command)


def panoptic_truth(folder: Path) -> Kind:
    """COCO panoptic annotations."""
    from condinst_infer.datasets.coco_panoptic import read_panoptic, read_results

    path, real = folder / "panoptic.json", DATA / "panoptic6/panoptic.json"
    value = json.loads(real.read_text())

    def command(content: str | bytes) -> Command:
        path.write_bytes(_bytes(content))

        def run() -> None:
            read_results(path, read_panoptic(real))
            read_panoptic(path, DATA / "panoptic6/panoptic")

        return run

    return Kind(value, json.dumps(value).encode(), command)


def polygons(folder: Path) -> Kind:
    """Polygons of Cityscapes."""
    photograph = folder / "leftImg8bit/val/a/a_000000_000000_leftImg8bit.png"
    path = folder / "gtFine/val/a/a_000000_000000_gtFine_polygons.json"
    for file in (photograph, path):
        file.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photograph)
    corners = [[2, 3], [12, 3], [12, 11.5]]
    names = ("road", "car", "cargroup", "sky")
    objects = [{"label": name, "polygon": corners, "deleted": 0} for name in names]
    value = {"imgHeight": 20, "imgWidth": 30, "objects": objects}

    def command(content: str | bytes) -> Command:
        path.write_bytes(_bytes(content))
        place = str(folder / "out")
        return ["convert", "cityscapes", str(folder), "--split", "val", "-o", place, "--panoptic"]

    return Kind(value, json.dumps(value).encode(), command)


def run_config(folder: Path) -> Kind:
    """config.json of a training that goes on."""
    from dataclasses import asdict

    from condinst_infer.train import run
    from condinst_infer.train.settings import TrainConfig

    path = folder / "config.json"
    config = json.loads(json.dumps(asdict(TrainConfig())))
    value = {"model": _plain(_small_config()), "settings": config, "versions": {"torch": "2"}}

    def command(content: str | bytes) -> Command:
        path.write_bytes(_bytes(content))
        return lambda: run._check_settings(path, value)

    return Kind(value, json.dumps(value).encode(), command)


def setting(folder: Path) -> Kind:
    """--set NAME=VALUE of a training."""
    from condinst_infer.train.settings import TrainConfig, field_names

    flat = {**_plain(preset("condinst_nano"))["mask"], **_plain(preset("condinst_nano"))["detect"]}
    value = {**flat, "steps": list(TrainConfig().steps), "seed": 0, "learning_rate": 0.01}
    names = [*value, *field_names(), "stem_channels", "neck_extra_levels", "class_names"]
    words = ["train", "condinst_nano", "--train", str(folder / "no.json"), "--images", str(folder)]

    def command(content: str | bytes) -> Command:
        assert isinstance(content, str)
        name = names[len(content) % len(names)]
        return [*words, "-o", str(folder / "run"), "--set", f"{name}={content}"[:100_000]]

    return Kind([0], None, lambda content: command(str(content)[1:-1]))


def training_log(folder: Path) -> Kind:
    """The log of a training that goes on."""
    from condinst_infer.train.progress_log import cut_log

    path = folder / "log.jsonl"
    value = [{"iteration": number, "loss/total": 0.5, "AP": None} for number in (20, 40, 60)]

    def command(content: str | bytes) -> Command:
        if isinstance(content, str):
            content = content.replace("}, ", "}\n").encode(errors="replace")
        path.write_bytes(content)
        return lambda: cut_log(path, 40)

    lines = "".join(f"{json.dumps(line)}\n" for line in value).encode()
    return Kind(value, lines, command)


def results(folder: Path) -> Kind:
    """Results as JSON that are read back."""
    from condinst_infer.results.instances import Instances
    from condinst_infer.results.panoptic import PanopticSegmentation

    rle = {"size": [4, 6], "counts": "97N100O4"}
    masks = [{"size": [4, 6], "counts": text} for text in ("5236", "0h0", "34A2")]
    value = {
        "image_size": [4, 6],
        "boxes": [[0, 0, 2, 2.5]] * 3,
        "scores": [0.9, 0.5, 0.4],
        "labels": [0, 1, 1],
        "names": ["a", "b", "b"],
        "masks": masks,
        "class_names": ["a", "b"],
        "category_ids": [1, 2],
        "segments": [
            {
                "id": 3,
                "category_id": 1,
                "name": "a",
                "is_thing": True,
                "area": 3,
                "box": [0, 0, 1, 1],
                "score": 0.5,
                "mask": rle,
            }
        ],
    }

    def command(content: str | bytes) -> Command:
        kind = PanopticSegmentation if len(content) % 2 else Instances
        return lambda: kind.from_json(content)

    return Kind(value, json.dumps(value).encode(), command)


def shards(folder: Path) -> Kind:
    """The record beside shards."""
    from condinst_infer.cli.shards import RUN, plan_shards

    value = {"settings": {"model": "a", "size": None}, "shards": [["a.jpg", "b.jpg"], ["c.jpg"]]}
    (folder / "shard-00000.jsonl").write_text("")

    def command(content: str | bytes) -> Command:
        (folder / RUN).write_bytes(_bytes(content))
        return lambda: plan_shards(folder, ".jsonl", value["settings"], ["a.jpg", "d.jpg"], 2)

    return Kind(value, json.dumps(value).encode(), command)


def triton(folder: Path) -> Kind:
    """metadata.json of a model in Triton."""
    from condinst_infer.serving.triton.model import TritonModel

    model = onnx.load(write_bright_model(folder / "real.onnx"))
    value = {p.key: p.value for p in model.metadata_props}

    def command(content: str | bytes) -> Command:
        (folder / "metadata.json").write_bytes(_bytes(content))
        return lambda: TritonModel(None, "m", folder)

    return Kind(value, json.dumps(value).encode(), command)


def foreign_config(folder: Path) -> Kind:
    """A configuration that `import` reads, as JSON, which YAML contains."""
    import torch

    from tests.support.tiny_model import TINY_CFG

    weights = folder / "weights.pth"
    torch.save({"proposal_generator.a": torch.zeros(2)}, weights)
    value: dict[str, Any] = {"_BASE_": "base.yaml"}
    for name, leaf in TINY_CFG.items():
        *sections, last = name.split(".")
        place = value
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = leaf
    (folder / "base.yaml").write_text("MODEL: {FCOS: {NUM_CLASSES: 3}}\n")
    yaml = b"_BASE_: base.yaml\nMODEL:\n  FCOS: &a\n    NUM_CLASSES: 3\n  B: *a\nC: [1, 2e3]\n"

    def command(content: str | bytes) -> Command:
        path = folder / f"config.{'json' if isinstance(content, str) else 'yaml'}"
        path.write_bytes(_bytes(content))
        out = str(folder / "out.safetensors")
        return ["import", str(weights), "--config", str(path), "-o", out]

    return Kind(value, yaml, command)


KINDS: dict[str, Callable[[Path], Kind]] = {
    kind.__name__: kind
    for kind in (
        *(onnx_metadata, onnx_bytes, self_test, checkpoint_header, checkpoint_config),
        *(engine_sidecar, detections, ground_truth, training_data, panoptic_truth, polygons),
        *(run_config, setting, training_log, results, shards, triton, foreign_config),
    )
}
