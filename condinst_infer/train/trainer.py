"""The training loop."""

import math
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, distributed, nn

from condinst_infer import checkpoint
from condinst_infer.errors import ConfigError, InputError, TrainingError
from condinst_infer.model.condinst import CondInst
from condinst_infer.system.signals import Interrupted, stop_signals
from condinst_infer.train.distributed import Processes, with_sync_bn
from condinst_infer.train.failures import error_with_advice, machine_sentence
from condinst_infer.train.loader import (
    Batch,
    Positions,
    TrainingImages,
    training_batches,
    worker_alarm_off,
)
from condinst_infer.train.losses import LossConfig, condinst_losses
from condinst_infer.train.optimizer import learning_rate, optimizer_for
from condinst_infer.train.progress_log import ProgressLog
from condinst_infer.train.records import CocoData
from condinst_infer.train.resume import last_state, save_state, state_misfit
from condinst_infer.train.settings import TrainConfig
from condinst_infer.train.whole_iteration import WholeIteration

STATE_AGE_S = 120  # a run that is killed loses no more
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
        how_to_resume: what to do after an interruption, for messages.
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
        how_to_resume: str = "train(..., resume=True)",
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
        self.how_to_resume = how_to_resume
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
        self.saved: int | None = None  # iteration of the newest state in `run`
        self._saved_at = monotonic()
        self._judged_at = 0  # iterations done at the last evaluation
        self._judging = False
        self._batches: Generator[Batch, None, None] | None = None
        self._signals: list[int] = []
        self._whole = WholeIteration(model)
        if resume:
            self._resume()
        if here.count > 1:
            self.step = nn.parallel.DistributedDataParallel(step)
        self.images = TrainingImages(data, settings.augment, seed=settings.seed)

    def train(self) -> None:
        """Run to the last iteration.

        Raises:
            TrainingError: the loss is not finite; the text names the batch's files. Or the machine
                failed.
            InputError: an image or a file of the run can't be used.
            KeyboardInterrupt: after SIGINT or SIGTERM.

        Whatever is raised, the state of the last whole iteration is saved before, if it can be,
        and the text says how to go on.
        """
        with stop_signals(self._stop_evaluation) as self._signals:
            report: ProgressLog | None = None
            try:
                if self.here.first:
                    report = self._open_log()
                self._run_iterations(report)
                if report is not None:
                    report.close()
            except BaseException as error:
                if report is not None:
                    with suppress(InputError):
                        report.close()
                found = error_with_advice(error, self._rescue(error))
                if found is error:
                    raise
                raise found from None
            finally:
                if self._batches is not None:
                    self._batches.close()  # after the rescue: a worker that hangs takes seconds

    def _open_log(self) -> ProgressLog:
        settings = self.settings
        return ProgressLog(
            self.run,
            self.done,
            settings.iterations,
            settings.images_per_batch,
            evaluated=not self._is_unjudged(),
        )

    def _run_iterations(self, report: ProgressLog | None) -> None:
        """Do what is left."""
        settings = self.settings
        if report is not None:
            samples = [self.images[position].plot() for position in range(PICTURES)]
            report.pictures(self.done, "train", samples)
        if self._is_unjudged():
            self._evaluate(report)
        if self.done == settings.iterations:
            self._save_weights()  # a run that was killed may have none
            return
        self._batches = self._open_batches()
        while self.done < settings.iterations:
            started = monotonic()
            parts = [next(self._batches) for _ in range(settings.accumulate)]
            with worker_alarm_off():
                rate = learning_rate(self.done, settings)
                losses = self._iteration(parts, rate)
                if report is not None:
                    report.step(losses, rate)
                    if self.done % settings.log_every == 0 or self.done == settings.iterations:
                        report.log(self.done, rate)
                self._stop_if_asked()
                self._milestones(report, monotonic() - started)

    def _stop_evaluation(self) -> None:
        """Act on a signal while the model is evaluated, which can take hours: it is made again."""
        if self._judging:
            raise Interrupted(self._signals[0])

    def _stop_if_asked(self) -> None:
        """Interrupted if a signal came to any process."""
        number = self._signals[0] if self._signals else 0
        if self.here.count > 1:
            numbers = torch.tensor([float(number)], device=self.here.device)
            distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
            number = int(numbers.item())
        if number:
            raise Interrupted(signal.Signals(number))

    def _rescue(self, error: BaseException) -> str:
        """Save the last whole iteration, unless it is; say what there is and how to go on."""
        if not self.here.first:
            return ""
        reason = ""
        is_ours = isinstance(error, Interrupted) or not isinstance(error, KeyboardInterrupt)
        second = bool(self._signals) and not is_ours  # a second signal acts at once
        if self.done > (self.saved or 0) and not second:
            try:
                with worker_alarm_off(dropped=True):
                    self._whole.restore()
                    self._save()
            except Exception as problem:
                said = machine_sentence(problem) or str(problem)
                reason = "" if said == str(error) else f": {said}".rstrip(".")
        total = self.settings.iterations
        if self.saved is None:
            if not self.done:
                return ""
            lost = f"The state after iteration {self.done} of {total} was not saved{reason}"
            return f"{lost}; start the run again."
        text = f"The state after iteration {self.saved} of {total} is saved"
        if self.saved < self.done:
            text += f", that after {self.done} is not{reason}"
        if isinstance(error, TrainingError):
            weights = self.run / "model.safetensors"
            return f"{text}; a new run starts from its weights with --init {weights}"
        return f"{text}; go on with: {self.how_to_resume}"

    def _open_batches(self) -> Generator[Batch, None, None]:
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

    def _iteration(self, parts: Sequence[Batch], rate: float) -> dict[str, float]:
        """One change of the weights by the parts of a batch; its losses, averaged."""
        settings = self.settings
        self._whole.begin()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums: Tensor | None = None
        names: list[str] = []
        for part, batch in enumerate(parts):
            batch = _to_device(batch, self.here.device)
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
        self._whole.is_torn = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.done += 1
        self._whole.end()
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

    def _milestones(self, report: ProgressLog | None, seconds: float) -> None:
        """Evaluation and state, where they are due after this many iterations.

        Args:
            seconds: the last iteration took.
        """
        settings, unjudged = self.settings, self._is_unjudged()
        if self.done % settings.save_every == 0 or unjudged or self.done == settings.iterations:
            self._save()  # first: an evaluation can take long
        elif monotonic() - self._saved_at + seconds > STATE_AGE_S:
            self._save_state()
        if unjudged:
            self._evaluate(report)

    def _is_unjudged(self) -> bool:
        """True if an evaluation is due after this many iterations, and still to be made."""
        last = self.done == self.settings.iterations
        is_due = self.evaluate is not None and (self.done % self.settings.eval_every == 0 or last)
        return is_due and self.done > self._judged_at

    def _evaluate(self, report: ProgressLog | None) -> None:
        """Evaluate the model, and save what the evaluation said."""
        if self.evaluate is not None and report is not None:
            with suppress(Interrupted):  # below
                self._judge(self.evaluate, report)
        self._stop_if_asked()  # the others wait
        self._judged_at = self.done
        self._save()

    def _judge(self, evaluate: Evaluate, report: ProgressLog) -> None:
        """Evaluate; the weights with the best PQ, else mask AP, are kept in best.safetensors."""
        self._judging = True
        try:
            if self._signals:
                return
            with report.pause_clock():
                self.model.eval()
                values = evaluate(self.model, self.done, report)
            report.values(self.done, values)
            score = values.get("all/PQ", values.get("mask/AP"))
            if score is not None and score > self.best:
                self.best = score
                checkpoint.save(self.model, self.run / "best.safetensors")
        finally:
            self._judging = False
            self.model.train()

    def _save(self) -> None:
        """The state to go on from, and the weights to use."""
        self._save_state()
        self._save_weights()

    def _save_state(self) -> None:
        """The state to go on from."""
        if not self.here.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "judged_at": self._judged_at,
        }
        save_state(self.run, self.done, state, keep=self.settings.keep_checkpoints)
        self.saved, self._saved_at = self.done, monotonic()

    def _save_weights(self) -> None:
        """The weights to use."""
        if self.here.first:
            checkpoint.save(self.model, self.run / "model.safetensors")

    def _resume(self) -> None:
        state = last_state(self.run, lambda found: state_misfit(found, self.model, self.optimizer))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.done, self.best = state["iteration"], state["best"]
        self.saved = self.done
        self._judged_at = state.get("judged_at", self.done)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` on `device`."""
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        return None if value is None else value.to(device, non_blocking=True)

    truths = tuple(type(truth)(*map(move, truth)) for truth in batch.truths)
    return Batch(batch.names, move(batch.images), move(batch.image_sizes), truths)
