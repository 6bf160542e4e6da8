"""A folder of shards: the results of many images, and the record of which shard has which."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from condinst_infer.cli.predict_images import image_ids
from condinst_infer.errors import ConfigError, InputError, shorten
from condinst_infer.system.json_text import parse_json
from condinst_infer.system.ordered_map import groups
from condinst_infer.system.outputs import atomic_file
from condinst_infer.system.paths import is_file, is_folder, read_bytes, reading

RUN = "run.json"  # {"settings": {...}, "shards": [[path, ...], ...]}


class Shard(NamedTuple):
    """A fixed part of the images, whose results are one file."""

    path: Path
    image_ids: list[int]
    files: list[str]


def plan_shards(
    folder: Path, suffix: str, settings: Mapping[str, Any], files: Sequence[str], size: int
) -> tuple[list[Shard], list[Shard]]:
    """Divide `files` into shards: those that are in `folder`, and those still to be made.

    A file keeps its shard for good: files that are new come into new shards, of `size` files each,
    and what `files` no longer names stays. The plan is in `RUN` when this returns.

    Args:
        suffix: of the shards' names.
        settings: all that the results depend on, besides the files; plain data.

    Raises:
        ConfigError: the shards in `folder` were made with other settings.
        InputError: `RUN` can't be read or written, or is missing beside shards.
    """
    done: set[str] = set()
    if is_folder(folder):
        with reading(folder):
            names = [path.name for path in folder.iterdir()]
        done = {name for name in names if name.startswith("shard-") and is_file(folder / name)}
    before = _read_record(folder, settings) if done else []
    known = [file for shard in before for file in shard]
    new = sorted(set(files) - set(known))
    shards = [*before, *groups(new, size)]
    ids = image_ids([Path(file) for file in known + new])
    if ids[: len(known)] != image_ids([Path(file) for file in known]):
        raise ConfigError(
            f"the images in {folder} are numbered by their names, which {new[0]} and the other "
            "new ones have no such numbers for; give another folder with -o."
        )
    if shards != before:
        with atomic_file(folder / RUN) as part:
            part.write_text(json.dumps({"settings": settings, "shards": shards}))
    rest = iter(ids)
    all_ = [
        Shard(folder / f"shard-{number:05}{suffix}", [next(rest) for _ in files], files)
        for number, files in enumerate(shards)
    ]
    return [s for s in all_ if s.path.name in done], [s for s in all_ if s.path.name not in done]


def _read_record(folder: Path, settings: Mapping[str, Any]) -> list[list[str]]:
    """The files of each shard of `folder`, which were made with `settings`."""
    try:
        record = parse_json(read_bytes(folder / RUN), RUN, InputError)
        made, shards = record["settings"], record["shards"]
        if not isinstance(made, dict) or not _are_shards(shards):
            raise ValueError
    except (InputError, ValueError, TypeError, KeyError):
        raise InputError(
            f"{folder} has shards but no readable {RUN} that says what is in them; give another "
            "folder with -o."
        ) from None
    for name, value in settings.items():
        if made.get(name) != value:
            raise ConfigError(
                f"the shards in {folder} were made with {name} {shorten(made.get(name))}, not "
                f"{shorten(value)}; give another folder with -o."
            )
    return shards


def _are_shards(value: Any) -> bool:
    """True for lists of file names."""
    return isinstance(value, list) and all(
        isinstance(files, list) and all(isinstance(file, str) for file in files) for files in value
    )


def write_shard(path: Path, records: list[dict[str, Any]], noun: str) -> None:
    """`records`, one per image, as JSON lines, or as Parquet if `path` ends so.

    Args:
        noun: "detections" or "segments", the list in each record.

    Raises:
        InputError: the file can't be written.
    """
    with atomic_file(path) as part:
        if path.suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(records, schema=_schema(noun)), part)
        else:
            part.write_text("".join(json.dumps(record) + "\n" for record in records))


def _schema(noun: str) -> Any:
    """Columns of a Parquet file; the same for shards in which nothing was found."""
    import pyarrow as pa

    whole, real = pa.int64(), pa.float64()
    rle = pa.struct({"size": pa.list_(whole), "counts": pa.string()})
    common = {"category_id": whole, "score": real, "segmentation": rle}
    if noun == "detections":
        found = {"image_id": whole, "bbox": pa.list_(real), **common}
    else:
        found = {"id": whole, "area": whole, "bbox": pa.list_(whole), "iscrowd": whole, **common}
    return pa.schema(
        {
            "file": pa.string(),
            "image_id": whole,
            "size": pa.list_(whole),
            noun: pa.list_(pa.struct(found)),
            "error": pa.string(),
        }
    )
