"""A whole training run: from annotation files to a folder with a model."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from condinst_infer import __version__
from condinst_infer.config.model import CondInstConfig, override, with_classes
from condinst_infer.datasets.coco import read_json
from condinst_infer.datasets.coco_panoptic import read_panoptic
from condinst_infer.errors import CondInstError, ConfigError, InputError, TrainingError, shorten
from condinst_infer.evaluation.average_precision import category_of_model, detect, read_truth, score
from condinst_infer.evaluation.panoptic_quality import category_of_model as category_of_panoptic
from condinst_infer.evaluation.panoptic_quality import evaluate_panoptic
from condinst_infer.model.condinst import CondInst
from condinst_infer.pipeline import Pipeline
from condinst_infer.runtimes.pytorch import TorchSession
from condinst_infer.system.outputs import check_not_input, write_json
from condinst_infer.train.distributed import processes
from condinst_infer.train.failures import machine_sentence
from condinst_infer.train.image_check import check_image_sizes, check_training_images
from condinst_infer.train.initialize import InitialModel, initial_model
from condinst_infer.train.progress_log import LOG, ProgressLog
from condinst_infer.train.records import CocoData, read_coco, read_coco_panoptic
from condinst_infer.train.resume import has_state
from condinst_infer.train.settings import TrainConfig
from condinst_infer.train.trainer import PICTURES, Evaluate, Trainer

CONFIG = "config.json"  # in the run's folder
OUTPUTS = (CONFIG, LOG, "model.safetensors", "best.safetensors")
FREE_TO_CHANGE = ("workers", "log_every", "save_every", "keep_checkpoints", "eval_every")


class DataPaths(NamedTuple):
    """COCO JSON of instances or, for a panoptic model, panoptic; the folder of its images."""

    annotations: Path
    images: Path


def train(
    config: CondInstConfig,
    settings: TrainConfig,
    data: DataPaths,
    run: str | Path,
    *,
    val: DataPaths | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    how_to_resume: str = "train(..., resume=True)",
) -> Path:
    """Train a model; gives the path of its weights, RUN/model.safetensors.

    Classes and kinds of stuff are those of the annotation file. In `run` there are also
    config.json with all that was set, the state to resume from, log.jsonl and TensorBoard files,
    and, with validation data, best.safetensors. Started by `torchrun`, every process calls this.

    Args:
        config: the model; its class names, category ids and number of classes are replaced, and
            so are names and ids of stuff of a panoptic one.
        settings: data augmentation, losses and schedule.
        data: what to train on.
        run: folder, made if missing.
        val: what to judge by; None judges nothing.
        init: weights to start with, see `initial_model`.
        resume: go on where the run in this folder stopped.
        device: "cpu", "cuda", or None for a GPU where there is one.
        how_to_resume: what to do after an interruption, for messages.

    Raises:
        InputError: data or folder can't be used; images are looked at before the first iteration.
        ConfigError: settings that don't fit, or other ones than those of the run to resume.
        TrainingError: the loss became infinite, or the machine failed.
        KeyboardInterrupt: after SIGINT or SIGTERM.

    What ends the training early leaves the state of its last whole iteration, and the text of the
    error says so. Where that can't be written, or the process is killed, the newest state is two
    minutes old at most.
    """
    try:
        return _train(config, settings, data, Path(run), val, init, resume, device, how_to_resume)
    except CondInstError:
        raise
    except Exception as error:
        sentence = machine_sentence(error)
        if sentence is None:
            raise
        raise TrainingError(sentence) from None


def _train(
    config: CondInstConfig,
    settings: TrainConfig,
    data: DataPaths,
    run: Path,
    val: DataPaths | None,
    init: str | Path | None,
    resume: bool,
    device: str | None,
    how_to_resume: str,
) -> Path:
    """As `train`; errors of the machine before the first iteration are those of its libraries."""
    _check_outputs(run, data, val, init)
    if config.is_panoptic:
        found = read_coco_panoptic(data.annotations, data.images)
    else:
        found = read_coco(data.annotations, data.images, keep_empty=settings.keep_empty)
    config = with_classes(config, found.class_names, found.category_ids)
    if config.is_panoptic:
        config = override(config, stuff_names=found.stuff_names, stuff_ids=found.stuff_ids)
    looks = os.environ.get("RANK", "0") == "0"  # one process looks at the images, for all
    if looks:
        check_training_images(found, data.annotations)
    judge = _judge_panoptic if config.is_panoptic else _judge
    evaluate = None if val is None else judge(val, config, settings, looks)
    with processes(device) as here:
        start = initial_model(config, init, seed=settings.seed)
        if here.first:
            written = _description(start.model.config, settings, data, val, init)
            _prepare(run, written, resume)
            _tell(start, found, run)
        Trainer(  # without a name: nothing of it is left when the processes part
            start.model,
            found,
            settings,
            run=run,
            here=here,
            evaluate=evaluate,
            resume=resume,
            how_to_resume=how_to_resume,
        ).train()
    return run / "model.safetensors"


def _description(
    config: CondInstConfig,
    settings: TrainConfig,
    data: DataPaths,
    val: DataPaths | None,
    init: str | Path | None,
) -> dict[str, Any]:
    """The content of config.json."""
    paths = {"train": data, "val": val}
    return {
        "model": dataclasses.asdict(config),
        "settings": dataclasses.asdict(settings),
        "data": {k: None if p is None else [str(f) for f in p] for k, p in paths.items()},
        "init": None if init is None else str(init),
        "versions": {"condinst-infer": __version__, "torch": torch.__version__},
    }


def _check_outputs(
    run: Path, data: DataPaths, val: DataPaths | None, init: str | Path | None
) -> None:
    """ConfigError if the run would write over what it reads."""
    inputs = [data.annotations, *([] if val is None else [val.annotations])]
    inputs += [] if init is None else [Path(init)]
    for name in OUTPUTS:
        check_not_input(run / name, inputs)


def _prepare(run: Path, written: Mapping[str, Any], resume: bool) -> None:
    """Make the folder and its config.json, or check that the one there is the same."""
    path = run / CONFIG
    new = json.loads(json.dumps(written))
    if resume and has_state(run):
        _check_settings(path, new)
        return
    if resume:
        raise InputError(f"{run} holds no run to resume; leave --resume out.")
    if has_state(run):
        raise InputError(
            f"{run} holds a run already; go on with it by --resume, or choose another folder."
        )
    write_json(path, new, indent=2)


def _check_settings(path: Path, new: Mapping[str, Any]) -> None:
    """ConfigError if the run whose config.json is `path` was started with other settings."""
    old = read_json(path)
    again = "a run goes on with the settings it was started with"
    parts = ("model", "settings")
    if not (isinstance(old, dict) and all(isinstance(old.get(part), dict) for part in parts)):
        raise InputError(
            f"{path} is not what a training writes: it has no objects model and settings. Put it "
            "back, or start again in another folder."
        )
    for part in parts:
        for name in new[part]:
            if name in FREE_TO_CHANGE:
                continue
            if name not in old[part]:
                versions = old.get("versions")
                known = versions.get("condinst-infer") if isinstance(versions, dict) else None
                raise ConfigError(
                    f"{path} has no {name}: it was written by condinst-infer {str(known)[:40]}, "
                    f"this is {__version__}; {again}, by the same version."
                )
            if old[part][name] != new[part][name]:
                raise ConfigError(
                    f"{name} was {shorten(old[part][name])} in {path}, now it is "
                    f"{shorten(new[part][name])}; {again}."
                )


def _tell(start: InitialModel, data: CocoData, run: Path) -> None:
    """Print the data and the initial weights of this run."""
    objects = sum(len(record.annotations) for record in data.records)
    stuff = f", {len(data.stuff_names)} kinds of stuff" if data.stuff_names else ""
    print(
        f"{len(data.records)} images, {objects} objects, {len(data.class_names)} classes{stuff} "
        f"-> {run}"
    )
    for reason, count in sorted(data.skipped.items()):
        print(f"  left out: {count} {reason}")
    if start.fitted:
        print(f"{len(start.fitted)} tensors start from the file; these don't:")
        for line in start.unfitted or ("none",):
            print(f"  {line}")


def _judge(val: DataPaths, config: CondInstConfig, settings: TrainConfig, looks: bool) -> Evaluate:
    """Evaluates on all of `val`, and draws a few of its images."""
    truth = read_truth(val.annotations)
    category_of_model(config, truth)  # what does not fit is said before hours of training
    paths = [val.images / name for name in truth.images.values()]
    if looks:
        sizes = [truth.sizes[id_] for id_ in truth.images]
        check_image_sizes(list(zip(paths, sizes, strict=True)), val.annotations)

    def judge(model: CondInst, iteration: int, report: ProgressLog) -> dict[str, float | None]:
        pipeline = Pipeline(TorchSession(model))
        found = detect(pipeline, truth, val.images)
        result = score(truth, found, max_detections=settings.eval_max_dets)
        shown = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
        report.pictures(iteration, "val", [pipeline(path).plot() for path in shown])
        report.message(
            f"iteration {iteration}: box AP {_number(result.box['AP'])}, "
            f"mask AP {_number(result.mask['AP'])}"
        )
        kinds = {"box": result.box, "mask": result.mask}
        return {f"{kind}/{name}": v for kind, of in kinds.items() for name, v in of.items()}

    return judge


def _judge_panoptic(
    val: DataPaths, config: CondInstConfig, _settings: TrainConfig, looks: bool
) -> Evaluate:
    """Evaluates a panoptic model on all of `val`, and draws a few images."""
    truth = read_panoptic(val.annotations)
    category_of_panoptic(config, truth)
    paths = [val.images / image.file_name for image in truth.images]
    if looks:
        photographs = [(path, image.size) for path, image in zip(paths, truth.images, strict=True)]
        pngs = [(image.png, image.size) for image in truth.images]
        check_image_sizes([*photographs, *pngs], val.annotations)

    def judge(model: CondInst, iteration: int, report: ProgressLog) -> dict[str, float | None]:
        pipeline = Pipeline(TorchSession(model))
        result = evaluate_panoptic(pipeline, truth, val.images)
        shown = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]
        report.pictures(iteration, "val", [found.plot() for found in pipeline.panoptic(shown)])
        report.message(
            f"iteration {iteration}: PQ {_number(result.all['PQ'])}, "
            f"things {_number(result.things['PQ'])}, stuff {_number(result.stuff['PQ'])}"
        )
        kinds = {"all": result.all, "things": result.things, "stuff": result.stuff}
        return {f"{kind}/{name}": v for kind, of in kinds.items() for name, v in of.items()}

    return judge


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
