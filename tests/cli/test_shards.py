"""Folders of shards: every file once and for good, and never results of two settings."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from condinst_infer.cli.shards import RUN, Shard, plan_shards, write_shard
from condinst_infer.errors import ConfigError, InputError
from tests.support.damage import DAMAGES, Damage


def plan(folder: Path, names: str, size: int = 2, **settings: Any) -> tuple[list[Shard], ...]:
    """`plan_shards` of one file per letter."""
    return plan_shards(
        folder, ".jsonl", {"model": "m", **settings}, [f"/{n}.png" for n in names], size
    )


def letters(shards: list[Shard]) -> list[str]:
    return ["".join(Path(file).stem for file in shard.files) for shard in shards]


def test_files_are_sorted_into_shards_and_numbered(tmp_path: Path) -> None:
    done, todo = plan(tmp_path, "cabed")
    assert done == [] and letters(todo) == ["ab", "cd", "e"]
    assert [shard.image_ids for shard in todo] == [[1, 2], [3, 4], [5]]
    assert [shard.path for shard in todo] == [tmp_path / f"shard-0000{n}.jsonl" for n in range(3)]
    assert plan(tmp_path, "cabed") == (done, todo)


def test_files_keep_their_shards_when_others_come_and_go(tmp_path: Path) -> None:
    first = plan(tmp_path, "bdfh")[1]
    first[1].path.write_text("")
    done, todo = plan(tmp_path, "abcdefg", size=3)  # h is gone
    assert letters(done) == ["fh"] and letters(todo) == ["bd", "ace", "g"]
    assert [shard.image_ids for shard in todo] == [[1, 2], [5, 6, 7], [8]]
    assert [shard.path.name for shard in todo] == [f"shard-0000{n}.jsonl" for n in (0, 2, 3)]
    assert plan(tmp_path, "a") == (done, todo)


def test_shards_of_other_settings_are_refused(tmp_path: Path) -> None:
    todo = plan(tmp_path, "ab", score=0.5)[1]
    assert plan(tmp_path, "abc", score=0.6)[1] != todo  # nothing was done yet
    todo[0].path.write_text("")
    text = (tmp_path / RUN).read_text()
    with pytest.raises(ConfigError, match=r"made with score 0\.6, not 0\.7; give another folder"):
        plan(tmp_path, "abcd", score=0.7)
    assert (tmp_path / RUN).read_text() == text


def damages_of_record() -> dict[str, Damage]:
    contents = {
        "no object": [],
        "no keys": {},
        "other settings": {"settings": [], "shards": []},
        "other shards": {"settings": {"model": "m"}, "shards": 5},
        "no names": {"settings": {"model": "m"}, "shards": [[5]]},
    }

    def writing(content: Any) -> Damage:
        return lambda path: path.write_text(json.dumps(content))

    missing: Damage = lambda path: path.unlink()  # noqa: E731 - one of many
    return {**DAMAGES, "missing": missing, **{k: writing(v) for k, v in contents.items()}}


@pytest.mark.parametrize("kind", damages_of_record())
def test_shards_without_a_record_are_refused(kind: str, tmp_path: Path) -> None:
    plan(tmp_path, "ab")[1][0].path.write_text("")
    damages_of_record()[kind](tmp_path / RUN)
    with pytest.raises(InputError, match=r"no readable run\.json"):
        plan(tmp_path, "ab")


def test_numbers_in_names_stay_the_numbers_of_the_images(tmp_path: Path) -> None:
    done = plan_shards(tmp_path, ".jsonl", {}, ["/7.png", "/12.png"], 2)[1]
    assert done[0].image_ids == [12, 7]
    done[0].path.write_text("")
    assert plan_shards(tmp_path, ".jsonl", {}, ["/3.png"], 2)[1][0].image_ids == [3]
    with pytest.raises(ConfigError, match=r"numbered by their names.* /a\.png"):
        plan_shards(tmp_path, ".jsonl", {}, ["/a.png"], 2)


@pytest.mark.parametrize("noun", ["detections", "segments"])
def test_parquet_has_the_fields_of_json_lines(tmp_path: Path, noun: str) -> None:
    rle = {"size": [2, 3], "counts": "06"}
    found = {"category_id": 3, "score": 0.25, "segmentation": rle}
    if noun == "detections":
        found |= {"image_id": 5, "bbox": [0.5, 1.0, 2.0, 3.0]}
    else:
        found |= {"id": 1, "area": 6, "bbox": [0, 0, 3, 2], "iscrowd": 0}
    records = [
        {"file": "/a.png", "image_id": 5, "size": [2, 3], noun: [found]},
        {"file": "/b.png", "image_id": 6, "size": [2, 3], noun: []},
        {"file": "/c.png", "error": "it is broken."},
    ]
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.parquet"
    for path in (lines, table):
        write_shard(path, records, noun)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == records
    rows = parquet.read_table(table).to_pylist()
    assert [{k: v for k, v in row.items() if v is not None} for row in rows] == records
    write_shard(tmp_path / "empty.parquet", records[1:], noun)
    assert parquet.read_schema(tmp_path / "empty.parquet") == parquet.read_schema(table)


def test_a_shard_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        write_shard(tmp_path / "no" / ("x" * 300 + ".jsonl"), [], "detections")
    assert os.listdir(tmp_path / "no") == []  # noqa: PTH208 - names, hidden ones too
