"""A run trains, goes on exactly where it stopped, and loses nothing on the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from condinst_infer import checkpoint, load
from condinst_infer.config.model import with_classes
from condinst_infer.errors import CheckpointError, ConfigError, InputError, TrainingError
from condinst_infer.model.condinst import CondInst, build_condinst
from condinst_infer.train.distributed import Processes, with_sync_bn
from condinst_infer.train.optimizer import learning_rate, optimizer_for
from condinst_infer.train.records import read_coco
from condinst_infer.train.resume import last_state, save_state
from condinst_infer.train.run import DataPaths, train
from condinst_infer.train.settings import TrainConfig, settings_for
from condinst_infer.train.trainer import Trainer
from tests.support.small_training import (
    command_line,
    losses_of,
    small_config,
    small_data,
    small_settings,
)

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> DataPaths:
    return small_data(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path / "model.safetensors").state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_paper_schedule() -> None:
    settings = TrainConfig()
    rates = {i: learning_rate(i, settings) for i in (0, 500, 1000, 59_999, 60_000, 80_000)}
    expected = {0: 1e-5, 500: 0.01 * 0.5005, 1000: 0.01, 59_999: 0.01, 60_000: 1e-3, 80_000: 1e-4}
    assert rates == pytest.approx(expected)


def test_the_cosine_schedule() -> None:
    settings = settings_for(small_config(), "short")
    assert learning_rate(1500, settings) == pytest.approx(settings.learning_rate / 2)
    assert learning_rate(2999, settings) < settings.learning_rate * 1e-5
    assert learning_rate(0, settings) == pytest.approx(1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_have_their_own_weight_decay_and_frozen_parts_none(name: str) -> None:
    model = build_condinst(small_config(frozen_stages=2))
    optimizer = optimizer_for(model, small_settings(optimizer=name, weight_decay=0.1))
    plain, norms = optimizer.param_groups
    assert (plain["weight_decay"], norms["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 1 for p in norms["params"])
    assert sum(p.dim() == 4 for p in plain["params"]) == sum(
        isinstance(m, nn.Conv2d) and m.weight.requires_grad for m in model.modules()
    )
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (plain, norms) for p in group["params"]} == trained
    assert all(id(p) not in trained for p in model.backbone.get_submodule("res2").parameters())


def test_a_run_leaves_a_model_its_log_and_what_was_set(data: DataPaths, run: Path) -> None:
    path = train(small_config(), small_settings(eval_every=3), data, run, val=data)
    assert path == run / "model.safetensors"
    with load(path) as pipeline:
        assert pipeline.config.class_names == ("disc", "box")
        assert pipeline.config.category_ids == (3, 17)
    written = json.loads((run / "config.json").read_text())
    assert written["settings"]["augment"]["short_sides"] == [64, 96]
    assert written["model"]["mask"]["mask_branch_channels"] == 8
    assert written["data"]["train"] == [str(data.annotations), str(data.images)]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert set(rows[0]) == {
        *("iteration", "learning_rate", "images_per_second", "memory_gb"),
        *(f"loss/{name}" for name in ("total", "class", "box", "centreness", "mask")),
    }
    assert "mask/AP" in rows[3]
    assert [p.name for p in sorted((run / "state").iterdir())] == ["0000004.pt", "0000006.pt"]
    assert any(p.name.startswith("events.out.tfevents") for p in run.iterdir())


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    data: DataPaths, run: Path, tmp_path: Path
) -> None:
    settings = small_settings(max_mask_samples=5)  # fewer than there are: drawn at random
    train(small_config(), settings, data, tmp_path / "whole")

    model = checkpoint_model(data)
    trainer = Trainer(model, read_coco(*data), settings, run=run, here=ALONE)
    run.mkdir()
    step = trainer.step.forward

    def interrupted_at_the_third(*args: Any) -> Any:
        if trainer.done == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    trainer.step.forward = interrupted_at_the_third
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.done == 3  # the iteration was finished, then saved
    with (run / "log.jsonl").open("a") as log:
        log.write('{"iteration": 4, "lo')  # as a power cut may leave it
    other = build_condinst(model.config)  # with other weights than those of the start
    Trainer(other, read_coco(*data), settings, run=run, here=ALONE, resume=True).train()

    assert losses_of(run) == losses_of(tmp_path / "whole")
    assert same(weights(run), weights(tmp_path / "whole"))


def checkpoint_model(data: DataPaths) -> CondInst:
    """The model `train` starts with."""
    torch.manual_seed(small_settings().seed)
    found = read_coco(*data)
    return build_condinst(with_classes(small_config(), found.class_names, found.category_ids))


def condinst(*words: str, processes: int = 1) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "condinst_infer", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(
    data: DataPaths, run: Path, tmp_path: Path
) -> None:
    # each process would have its own batch statistics; and group norm sees the padding, so that
    # all batches need one canvas
    changes: dict[str, Any] = {
        "backbone_norm": "bn_eval",
        "tower_norm": "gn",
        "mask_branch_norm": "gn",
        "semantic_loss": True,
        "keep_empty": True,
        "short_sides": [96],
        "optimizer": "sgd",  # Adam's division makes much of gradients that are nearly 0
        "images_per_batch": 4,
        "iterations": 4,
    }
    model_changes = {k: v for k, v in changes.items() if k.endswith("norm") or "semantic" in k}
    rest = {k: v for k, v in changes.items() if k not in model_changes}
    train(small_config(**model_changes), small_settings(**rest), data, tmp_path / "one")
    process = condinst(*command_line(data, run, **changes), processes=2)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for one, two in zip(losses_of(tmp_path / "one"), losses_of(run), strict=True):
        assert two == pytest.approx(one, rel=1e-4)  # measured 2e-7 at worst
    ours, theirs = weights(tmp_path / "one"), weights(run)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 1e-4


def test_accumulated_parts_are_one_batch(data: DataPaths, run: Path, tmp_path: Path) -> None:
    """Of one image that never varies, two parts have the gradient of both together."""
    content = json.loads(data.annotations.read_text())
    content["images"] = content["images"][1:2]
    only = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == only]
    data.annotations.write_text(json.dumps(content))
    fixed = {"short_sides": [96], "horizontal_flip": False, "iterations": 3}
    config = small_config(backbone_norm="bn_eval", tower_norm="gn", mask_branch_norm="gn")
    for folder, parts in ((run, 2), (tmp_path / "whole", 1)):
        train(config, small_settings(accumulate=parts, **fixed), data, folder)
    for part, whole in zip(losses_of(run), losses_of(tmp_path / "whole"), strict=True):
        assert part == pytest.approx(whole, rel=1e-5)  # measured 1.5e-7


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_losses_fall(data: DataPaths, run: Path, amp: str) -> None:
    settings = small_settings(iterations=30, amp=amp, clip_norm=10.0, log_every=5, save_every=30)
    train(small_config(), settings, data, run)
    totals = [row["loss/total"] for row in losses_of(run)]
    assert totals[-1] < 0.8 * totals[0]


def test_a_loss_that_is_not_finite_stops_with_the_file_names(data: DataPaths, run: Path) -> None:
    model = checkpoint_model(data)
    with torch.no_grad():
        model.fcos.class_logits.bias.fill_(float("nan"))  # pyright: ignore
    run.mkdir()
    trainer = Trainer(model, read_coco(*data), small_settings(), run=run, here=ALONE)
    with pytest.raises(TrainingError, match=r"not finite at iteration 1 .*images/00\d\.png"):
        trainer.train()
    assert not (run / "model.safetensors").exists()


def test_states_are_whole_and_only_the_last_ones_stay(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved state"):
        last_state(tmp_path)
    state = {"model": {"w": torch.ones(2)}, "optimizer": {}, "scaler": {}, "best": 0.0}
    for iteration in (1, 2, 10):
        save_state(tmp_path, iteration, state, keep=2)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["0000002.pt", "0000010.pt"]
    assert last_state(tmp_path)["iteration"] == 10


def test_a_run_is_resumed_with_its_own_settings_only(data: DataPaths, run: Path) -> None:
    with pytest.raises(InputError, match="holds no run to resume"):
        train(small_config(), small_settings(), data, run, resume=True)
    with pytest.raises(ConfigError, match="accumulate 3"):  # leaves nothing in the way
        train(small_config(), small_settings(accumulate=3), data, run)
    train(small_config(), small_settings(), data, run)
    with pytest.raises(InputError, match="--resume"):
        train(small_config(), small_settings(), data, run)
    with pytest.raises(ConfigError, match=r"learning_rate was 0.002 .* now it is 0.1"):
        train(small_config(), small_settings(learning_rate=0.1), data, run, resume=True)
    with pytest.raises(ConfigError, match="mask was"):
        train(small_config(mask_stride=2), small_settings(), data, run, resume=True)
    before = weights(run)
    train(small_config(), small_settings(workers=1), data, run, resume=True)  # nothing left to do
    assert same(weights(run), before)


def test_a_batch_must_split_evenly(data: DataPaths, run: Path) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 1 processes times accumulate 3"):
        train(small_config(), small_settings(accumulate=3), data, run)
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(small_config(), small_settings(amp="fp16"), data, run.with_name("other"))


def test_only_trained_batch_norms_are_synchronised() -> None:
    model = with_sync_bn(build_condinst(small_config(frozen_stages=2)))
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if "norm" in name}
    assert kinds["backbone.stem.norm"] == "FixedBatchNorm2d"
    assert kinds["backbone.res3.0.conv1.norm"] == "SyncBatchNorm"
    assert kinds["fcos.share_tower.0.norm.0"] == "SyncBatchNorm"
    assert "BatchNorm2d" not in kinds.values()
