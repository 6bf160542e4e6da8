"""`condinst predict --ray`: many images on the cores or GPUs of a Ray cluster, as shards."""

import json
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from condinst_infer.cli.options import MAX_WORKERS, PredictOptions
from condinst_infer.cli.predict_images import ImagePredictor, PanopticPredictor, predictor_for
from condinst_infer.cli.shards import Shard, plan_shards, write_shard
from condinst_infer.cli.sources import media
from condinst_infer.contract.metadata import file_sha256
from condinst_infer.errors import (
    CondInstError,
    ConfigError,
    InputError,
    ModelFileError,
    SessionError,
    require,
)
from condinst_infer.pipeline import load
from condinst_infer.system.ordered_map import groups, in_order
from condinst_infer.system.paths import exists
from condinst_infer.system.progress import progress_bar
from condinst_infer.system.signals import stop_signals

# what the results depend on, besides the model's bytes and the images
_SETTINGS = (
    "shards",
    "panoptic",
    "score_threshold",
    "max_detections",
    "classes",
    "instance_threshold",
    "overlap_threshold",
    "stuff_area_limit",
    "device",
    "runtime",
    "precision",
    "max_pixels",
)
_STORE_BYTES = 100 * 2**20  # of a Ray of our own: it holds paths and counts; Ray's least is 75 MiB


def predict_ray(options: PredictOptions) -> int:
    """0 if all was done, 1 if some could not be read; 130, 143 after SIGINT, SIGTERM.

    Raises:
        InputError: nothing could be read.
        ConfigError: the folder holds results of other settings.
        SessionError: Ray can't be reached, has no room, or gave up.
    """
    for module in ("pyarrow", "pandas", "ray.data"):
        require(module, "ray")
    images, videos, problems = media(options.source, options.output)
    if videos:
        raise ConfigError(f"--ray takes images; {videos[0].source} is a video or a stream.")
    start = time.perf_counter()
    sha256 = _sha256(options.model)
    settings = {"model_sha256": sha256, **{name: getattr(options, name) for name in _SETTINGS}}
    files = [os.path.abspath(file.path) for file in images]  # noqa: PTH100 - keeps symbolic links
    folder = options.output.absolute()
    done, todo = plan_shards(folder, f".{options.shards}", settings, files, options.shard_size)
    report: dict[str, Any] = {
        "images": 0,
        (PanopticPredictor if options.panoptic else ImagePredictor).noun: 0,
        "failed": [{"file": problem.path, "error": problem.error} for problem in problems],
        "before": sum(len(shard.files) for shard in done),
        "shards": len(done),
        "signal": None,  # that interrupted the work
    }
    for problem in problems:
        print(f"condinst: {problem.error}", file=sys.stderr)
    if todo:
        _predict_shards(options, sha256, todo, report)
        report["shards"] += sum(exists(shard.path) for shard in todo)
    failed = report["failed"]
    if failed and not report["images"] and not done and report["signal"] is None:
        raise InputError(failed[0]["error"] if len(failed) == 1 else "no image could be read.")
    _print_report(report, time.perf_counter() - start, options)
    if report["signal"] is not None:
        return 128 + report["signal"]
    return 1 if failed else 0


class ShardPredictor:
    """An actor of Ray: finds the instances of one shard at a time and writes its file."""

    def __init__(self, options: PredictOptions, sha256: str, workers: int) -> None:
        self._options, self._sha256, self._workers = options, sha256, workers

    @cached_property
    def _predictor(self) -> ImagePredictor:
        options = self._options
        if _sha256(options.model) != self._sha256:
            raise ModelFileError(f"{options.model} is another file on {platform.node()}.")
        pipeline = load(
            options.model,
            **options.for_load(),
            workers=self._workers,
            max_pixels=options.max_pixels,
            max_batch=options.batch,
        )
        return predictor_for(pipeline, options)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """The report of a shard as JSON; our errors too, which Ray would bury in its own."""
        try:
            report = self._predict_shard(Shard(*json.loads(row["shard"])))
        except CondInstError as error:
            report = {"error": str(error)}
        return {"report": json.dumps(report)}

    def _predict_shard(self, shard: Shard) -> dict[str, Any]:
        """Write a shard; counts of its images and instances, and what could not be read."""
        batch = max(self._options.batch, self._predictor.pipeline.metadata.batch or 1)
        images = groups(zip(shard.image_ids, shard.files, strict=True), batch)
        with closing(in_order(self._records, images, workers=self._workers)) as parts:
            records = list(chain.from_iterable(parts))
        noun = "segments" if self._options.panoptic else "detections"
        write_shard(Path(shard.path), records, noun)
        return {
            "images": sum(noun in record for record in records),
            self._predictor.noun: sum(len(record.get(noun, ())) for record in records),
            "failed": [record for record in records if "error" in record],
        }

    def _records(self, images: list[tuple[int, str]]) -> list[dict[str, Any]]:
        """The lines of a shard about a few images."""
        records: list[dict[str, Any]] = []
        results = self._predictor.predict_files([Path(file) for _, file in images])
        for (image_id, file), result in zip(images, results, strict=True):
            if isinstance(result, InputError):
                records.append({"file": file, "error": str(result)})
                continue
            known = {"file": file, "image_id": image_id, "size": list(result.image_size)}
            records.append(known | result.to_coco_record(image_id))
        return records


def _predict_shards(
    options: PredictOptions, sha256: str, todo: list[Shard], report: dict[str, Any]
) -> None:
    """Make the shards `todo` and add what is in them to `report`."""
    engine = options.device is None and options.model.suffix == ".engine"
    gpu = engine or (options.device or "").startswith("cuda")
    rows = [{"shard": json.dumps([str(path), *rest])} for path, *rest in todo]
    total = sum(len(shard.files) for shard in todo)
    with _ray(options.ray or "auto") as ray:
        workers, cores = _core_group(options, ray.nodes(), gpu)
        # without a number of threads the pipeline would take all cores it sees, not its actor's
        remote = replace(options, model=options.model.absolute(), threads=options.threads or 1)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardPredictor,
            fn_constructor_args=(remote, sha256, workers),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows)),
            num_cpus=cores,
            num_gpus=int(gpu),
        )
        with (
            stop_signals(_interrupt) as came,
            progress_bar(total, "image") as bar,
        ):
            try:
                for row in done.iter_rows():
                    part = json.loads(row["report"])
                    if "error" in part:
                        raise CondInstError(part["error"])
                    for name, value in part.items():
                        report[name] += value
                    bar.update(part["images"] + len(part["failed"]))
                    for failure in part["failed"] if total > 1 else ():
                        tqdm.write(f"condinst: {failure['error']}", file=sys.stderr)
            except KeyboardInterrupt:
                report["signal"] = came[0] if came else signal.SIGINT


def _sha256(model: Path) -> str:
    try:
        return file_sha256(model)
    except OSError as error:
        raise ModelFileError(
            f"{model} can't be read on {platform.node()}: {error.strerror or error}."
        ) from None


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def _ray(address: str) -> Iterator[Any]:
    """Ray, connected and quiet; what it prints goes to stderr, its errors leave this as ours."""
    if address not in ("local", "auto"):
        _check_listens(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    with redirect_stdout(sys.stderr):
        try:
            ray.init(
                address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **own if address == "local" else {},
            )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise SessionError(f"Ray can't be reached at {address}: {error}") from None
        try:
            yield ray
        except (RayError, ExecutionTimeoutError) as error:
            reason = str(error).strip().splitlines()
            raise SessionError(
                f"Ray gave up: {reason[-1]} (finished shards stay, and the same command goes on)"
            ) from None
        finally:
            ray.shutdown()


def _check_listens(address: str) -> None:
    """SessionError if nothing listens at HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError):
        raise SessionError(
            f"there is no Ray at {address}; give local, auto or HOST:PORT of a cluster that this "
            "machine is part of (Ray Data can't work through ray://)."
        ) from None


def _core_group(options: PredictOptions, nodes: list[dict[str, Any]], gpu: bool) -> tuple[int, int]:
    """Threads of an actor that read, run the model and make masks, and the cores they need.

    Raises:
        SessionError: no node has so many.
    """
    threads = options.threads or 1
    rooms = [
        int(has.get("CPU", 0) // (has["GPU"] if gpu else 1))
        for has in (node["Resources"] for node in nodes if node["Alive"])
        if not gpu or has.get("GPU", 0) >= 1
    ]
    fits = [room // threads for room in rooms if room >= threads] or [0]
    workers = options.workers or max(1, min(MAX_WORKERS, *fits))
    if workers > max(fits):
        what = f"{workers * threads} cores" + (" beside each GPU" if gpu else "")
        raise SessionError(
            f"no node of the Ray cluster has {what}, which an actor takes by --workers times "
            "--threads."
        )
    return workers, workers * threads


def _print_report(report: dict[str, Any], seconds: float, options: PredictOptions) -> None:
    if report["signal"] is not None:
        print(
            "condinst: interrupted; finished shards stay, and the same command goes on.",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps(report | {"seconds": round(seconds, 3)}))
        return
    noun = (PanopticPredictor if options.panoptic else ImagePredictor).noun
    extras = [f"{len(report['failed'])} skipped"] if report["failed"] else []
    extras += [f"{report['before']} done before"] if report["before"] else []
    facts = [f"{report['images']} images", f"{report[noun]} {noun}", *extras]
    print(f"{', '.join(facts)}, {seconds:.1f} s -> {report['shards']} shards in {options.output}")
