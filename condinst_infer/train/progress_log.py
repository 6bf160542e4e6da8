"""Progress of a run: progress bar, log file and TensorBoard."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from condinst_infer.errors import require

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None


class ProgressLog:
    """Writes RUN/log.jsonl and TensorBoard files, and shows a progress bar on stderr.

    Args:
        run: folder of the run.
        start, stop: iterations done before, and when all are done.
        images_per_batch: for images per second.
    """

    def __init__(self, run: Path, start: int, stop: int, images_per_batch: int) -> None:
        require("tensorboard", "train")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(run), purge_step=start)
        self._log = run / "log.jsonl"
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        kept = [line for line in lines if _iteration_of(line) <= start]
        self._log.write_text("".join(f"{line}\n" for line in kept))
        self._bar = tqdm(total=stop, initial=start, unit="it", dynamic_ncols=True)
        self._images_per_batch = images_per_batch
        self._speed = 0.0  # images per second
        self._since: list[tuple[float, Mapping[str, float]]] = []  # since the last log line
        self._started = time.perf_counter()

    def step(self, losses: Mapping[str, float], rate: float) -> None:
        """One iteration is done."""
        self._since.append((sum(losses.values()), losses))
        self._bar.set_postfix_str(
            f"loss {self._since[-1][0]:.3f}, rate {rate:.2g}, {self._speed:.1f} images/s",
            refresh=False,
        )
        self._bar.update()

    def log(self, iteration: int, rate: float) -> None:
        """The mean losses since the last call go to file and TensorBoard."""
        names = self._since[-1][1]
        means = {f"loss/{n}": float(np.mean([s[1][n] for s in self._since])) for n in names}
        seconds = time.perf_counter() - self._started
        self._speed = len(self._since) * self._images_per_batch / seconds
        total = float(np.mean([s[0] for s in self._since]))
        rest = {"learning_rate": rate, "images_per_second": self._speed, "memory_gb": _memory_gb()}
        self.values(iteration, {"loss/total": total, **means, **rest})
        self._since.clear()
        self._started = time.perf_counter()

    def values(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Named numbers of one iteration; None is left out of TensorBoard."""
        with self._log.open("a") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, iteration)

    def pictures(self, iteration: int, name: str, pictures: Sequence[np.ndarray]) -> None:
        """Pictures, BGR uint8 [H, W, 3], under one name."""
        for number, picture in enumerate(pictures):
            rgb = np.ascontiguousarray(picture[:, :, ::-1])
            self._board.add_image(f"{name}/{number}", rgb, iteration, dataformats="HWC")

    @contextmanager
    def pause_clock(self) -> Iterator[None]:
        """Leave the time inside, of an evaluation, out of the training speed."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._started += seconds
        self._bar.start_t += seconds
        self._bar.last_print_t += seconds

    def message(self, text: str) -> None:
        """A line above the progress bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Finish the files."""
        self._bar.close()
        self._board.close()


def _iteration_of(line: str) -> float:
    """The iteration of a line of the log; infinity for one that was cut off."""
    try:
        return json.loads(line)["iteration"]
    except ValueError:
        return float("inf")


def _memory_gb() -> float | None:
    """The most this process has held so far: of the GPU where it trains on one, else of memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
