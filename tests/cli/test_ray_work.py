"""`condinst predict --ray` without Ray: what it refuses, and what an actor does and takes."""

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from condinst_infer.cli import main, predict_ray
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.errors import SessionError
from tests.support.command_line import Run, assert_refused


def test_it_refuses_before_it_looks_for_ray(
    condinst: Run,
    bright_model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["predict", bright_model, photos, "-o", tmp_path / "out"]
    for address in ("127.0.0.1:1", "nonsense", "ray://127.0.0.1:1", "auto:x"):
        assert_refused(condinst(*words, "--ray", address), f"there is no Ray at {address}; give")
    ran = condinst("predict", bright_model, "camera:0", "-o", tmp_path, "--ray", "local")
    assert_refused(ran, "--ray takes images; camera:0 is")
    ran = condinst(
        "predict", tmp_path / "no.onnx", photos, "-o", tmp_path / "out", "--ray", "local"
    )
    assert_refused(ran, "no.onnx can't be read on", "No such file")
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert_refused(condinst(*words, "--ray", "local"), "pip install 'condinst-infer[ray]'")


def shard_work(*words: object) -> predict_ray.ShardPredictor:
    """An actor's work, outside Ray."""
    _, options = main.parse(["predict", *map(str, words)])
    return predict_ray.ShardPredictor(options, file_sha256(options.model), 2)


def test_a_worker_refuses_another_model(bright_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(bright_model, path)
    work = shard_work(path, "x.png", "-o", tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    reply = json.loads(
        work({"shard": json.dumps([str(tmp_path / "a.jsonl"), [1], ["x.png"]])})["report"]
    )
    assert reply == {"error": f"{path} is another file on {platform.node()}."}


def test_panoptic_shards_have_segments(
    panoptic_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    work = shard_work(panoptic_checkpoint, photos, "-o", tmp_path, "--panoptic")
    for suffix in ("jsonl", "parquet"):
        shard = [str(tmp_path / f"a.{suffix}"), [7, 8], [str(photos / "a.png"), "/no.png"]]
        report = json.loads(work({"shard": json.dumps(shard)})["report"])
        failed = [{"file": "/no.png", "error": "/no.png does not exist."}]
        assert report["images"] == 1 and report["failed"] == failed
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert second == failed[0] and first["image_id"] == 7 and first["size"] == [60, 90]
    assert len(first["segments"]) == report["segments"] > 0
    areas = sum(segment["area"] for segment in first["segments"])
    assert areas <= 60 * 90 and all("counts" in s["segmentation"] for s in first["segments"])
    row = parquet.read_table(tmp_path / "a.parquet").to_pylist()[0]
    assert [s["segmentation"] for s in row["segments"]] == [
        s["segmentation"] for s in first["segments"]
    ]


CPU = {"Alive": True, "Resources": {"CPU": 6.0}}
GPU = {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 4.0}}
HEAD = {"Alive": True, "Resources": {}}
DEAD = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}


@pytest.mark.parametrize(
    ("words", "nodes", "group"),
    [
        ((), [CPU, DEAD, HEAD], (6, 6)),
        ((), [CPU, GPU], (6, 6)),
        ((), [GPU], (8, 8)),
        (("--threads", 4), [CPU], (1, 4)),
        (("--threads", 2, "--workers", 2), [CPU], (2, 4)),
        (("--device", "cuda"), [CPU, GPU], (8, 8)),
        (("--device", "cuda", "--threads", 4), [CPU, GPU], (4, 16)),
        (("--workers", 7), [CPU, GPU], (7, 7)),
        (("--workers", 7), [CPU], None),
        (("--device", "cuda"), [CPU, DEAD], None),
        ((), [HEAD], None),
    ],
)
def test_an_actor_takes_a_group_of_cores_that_a_node_has(
    words: tuple[object, ...], nodes: list[Any], group: tuple[int, int] | None
) -> None:
    command = ["predict", "m", "s", "-o", "o", *map(str, words)]
    _, options = main.parse(command)
    if group is None:
        with pytest.raises(SessionError, match=r"no node of the Ray cluster has \d cores"):
            predict_ray._core_group(options, nodes, "cuda" in words)
    else:
        assert predict_ray._core_group(options, nodes, "cuda" in words) == group
