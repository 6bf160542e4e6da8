"""The training loop."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from condinst_infer import checkpoint
from condinst_infer.errors import ConfigError, TrainingError
from condinst_infer.model.condinst import CondInst
from condinst_infer.system.signals import stop_signals
from condinst_infer.train.distributed import Processes, with_sync_bn
from condinst_infer.train.loader import Batch, Positions, TrainingImages, training_batches
from condinst_infer.train.losses import LossConfig, condinst_losses
from condinst_infer.train.optimizer import learning_rate, optimizer_for
from condinst_infer.train.progress_log import ProgressLog
from condinst_infer.train.records import CocoData
from condinst_infer.train.resume import last_state, save_state
from condinst_infer.train.settings import TrainConfig

PICTURES = 4  # training samples, or validation images, drawn for TensorBoard
# after every so many iterations: model, iterations done -> values to log; PQ or mask AP decides
Evaluate = Callable[[CondInst, int, ProgressLog], Mapping[str, float | None]]


class TrainingStep(nn.Module):
    """Images in, losses out: what DistributedDataParallel wraps."""

    def __init__(self, model: CondInst, settings: LossConfig, amp: str) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        kind = batch.images.device.type
        with torch.autocast(kind, dtype=self.dtype, enabled=self.dtype is not None):
            raw = self.model.heads(batch.images, batch.image_sizes)
            return condinst_losses(
                raw, batch.truths, self.model.config, self.settings, generator=generator
            )


class Trainer:
    """One process of a training run.

    Args:
        model: to be trained; its config says what classes and strides the targets have.
        data: what it is trained on.
        settings: how.
        run: folder of the run, which the first process writes.
        here: this process among all.
        evaluate: judges the model every `eval_every` iterations; None judges nothing.
        resume: go on from the newest state in `run`.
    """

    def __init__(
        self,
        model: CondInst,
        data: CocoData,
        settings: TrainConfig,
        *,
        run: Path,
        here: Processes,
        evaluate: Evaluate | None = None,
        resume: bool = False,
    ) -> None:
        parts = here.count * settings.accumulate
        if settings.images_per_batch % parts:
            raise ConfigError(
                f"images_per_batch is {settings.images_per_batch}; it must be a multiple of "
                f"{here.count} processes times accumulate {settings.accumulate}."
            )
        if settings.amp == "fp16" and here.device.type == "cpu":
            raise ConfigError("amp fp16 needs a GPU; on a CPU take --set amp=bf16 or amp=off.")
        self.settings, self.run, self.here, self.evaluate = settings, run, here, evaluate
        model = model.to(here.device)
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if here.count > 1 and settings.sync_bn and here.device.type == "cuda":
            with_sync_bn(model)
        self.model = model.train()
        step = TrainingStep(model, settings.loss, settings.amp)
        self.step: nn.Module = step
        self.optimizer = optimizer_for(model, settings)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=settings.amp == "fp16")
        self.done, self.best = 0, -math.inf
        if resume:
            self._resume()
        if here.count > 1:
            self.step = nn.parallel.DistributedDataParallel(step)
        self.images = TrainingImages(data, settings.augment, seed=settings.seed)

    def train(self) -> None:
        """Run to the last iteration.

        Raises:
            TrainingError: the loss is not finite; the text names the batch's files.
            KeyboardInterrupt: after SIGINT or SIGTERM, once the state is saved.
        """
        settings, report = self.settings, None
        if self.here.first:
            start, stop = self.done, settings.iterations
            report = ProgressLog(self.run, start, stop, settings.images_per_batch)
            report.pictures(start, "train", [self.images[p].plot() for p in range(PICTURES)])
        try:
            with stop_signals() as stopped:
                batches = self._batches()
                while self.done < settings.iterations:
                    rate = learning_rate(self.done, settings)
                    losses = self._iteration(batches, rate)
                    self.done += 1
                    last = self.done == settings.iterations
                    if report is not None:
                        report.step(losses, rate)
                        if self.done % settings.log_every == 0 or last:
                            report.log(self.done, rate)
                    if self._any_process(bool(stopped)):
                        self._save()
                        if report is not None:
                            report.message("stopped and saved; the same with --resume goes on")
                        raise KeyboardInterrupt
                    self._milestones(report, last)
        finally:
            if report is not None:
                report.close()

    def _batches(self) -> Iterator[Batch]:
        """The batches that are left to do, in parts."""
        settings, here = self.settings, self.here
        positions = Positions(
            self.done * settings.accumulate,
            settings.iterations * settings.accumulate,
            batch=settings.images_per_batch // (here.count * settings.accumulate),
            rank=here.rank,
            processes=here.count,
        )
        return training_batches(
            self.images,
            self.model.config,
            positions,
            workers=settings.workers,
            pin_memory=here.device.type == "cuda",
        )

    def _iteration(self, batches: Iterator[Batch], rate: float) -> dict[str, float]:
        """One change of the weights; its losses, averaged over parts and processes."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums: Tensor | None = None
        names: list[str] = []
        for part in range(settings.accumulate):
            batch = _to_device(next(batches), self.here.device)
            with self._sync_gradients(part == settings.accumulate - 1):
                losses = self.step(batch, self._generator(part))
                total = torch.stack(list(losses.values())).sum() / settings.accumulate
                if not torch.isfinite(total):
                    raise TrainingError(self._not_finite(losses, batch))
                self.scaler.scale(total).backward()
            names = list(losses)
            values = torch.stack([loss.detach() for loss in losses.values()]) / settings.accumulate
            sums = values if sums is None else sums + values
        if settings.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        assert sums is not None
        if self.here.count > 1:
            distributed.all_reduce(sums)
            sums = sums / self.here.count
        return dict(zip(names, sums.tolist(), strict=True))

    def _sync_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Inside, gradients are averaged over the processes if this is the last part."""
        if last or not isinstance(self.step, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.step.no_sync()

    def _generator(self, part: int) -> torch.Generator:
        """The random numbers of one part of an iteration: the same again after a resume."""
        place = (self.done * self.settings.accumulate + part) * self.here.count + self.here.rank
        generator = torch.Generator(self.here.device)
        return generator.manual_seed(self.settings.seed * 1_000_003 + place)

    def _not_finite(self, losses: Mapping[str, Tensor], batch: Batch) -> str:
        values = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
        return (
            f"the loss is not finite at iteration {self.done + 1} ({values}). Lower the learning "
            f"rate (--learning-rate) or clip gradients (--set clip_norm=10); the batch was "
            f"{', '.join(batch.names)}."
        )

    def _milestones(self, report: ProgressLog | None, last: bool) -> None:
        """Evaluation and state, where they are due after this many iterations."""
        settings = self.settings
        judged = self.evaluate is not None and (self.done % settings.eval_every == 0 or last)
        if self.done % settings.save_every == 0 or judged or last:
            self._save()  # first: an evaluation can take long
        if self.evaluate is not None and judged:
            if report is not None:
                self._judge(self.evaluate, report)
            self._any_process(False)  # the others wait
            self._save()  # with what it said

    def _judge(self, evaluate: Evaluate, report: ProgressLog) -> None:
        """Evaluate; the weights with the best PQ, else mask AP, are kept in best.safetensors."""
        with report.pause_clock():
            self.model.eval()
            values = evaluate(self.model, self.done, report)
            self.model.train()
        report.values(self.done, values)
        score = values.get("all/PQ", values.get("mask/AP"))
        if score is not None and score > self.best:
            self.best = score
            checkpoint.save(self.model, self.run / "best.safetensors")

    def _any_process(self, flag: bool) -> bool:
        """True if any process says so."""
        if self.here.count == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.here.device)
        distributed.all_reduce(flags)
        return bool(flags.item() > 0)

    def _save(self) -> None:
        """The state to go on from, and the weights to use."""
        if not self.here.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
        }
        save_state(self.run, self.done, state, keep=self.settings.keep_checkpoints)
        checkpoint.save(self.model, self.run / "model.safetensors")

    def _resume(self) -> None:
        state = last_state(self.run)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.done, self.best = state["iteration"], state["best"]


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`."""
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        return None if value is None else value.to(device, non_blocking=True)

    truths = tuple(type(truth)(*map(move, truth)) for truth in batch.truths)
    return Batch(batch.names, move(batch.images), move(batch.image_sizes), truths)
