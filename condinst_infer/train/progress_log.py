"""Progress of a run: progress bar, log file and TensorBoard."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from condinst_infer.errors import InputError
from condinst_infer.system.json_text import parse_json
from condinst_infer.train.event_file import EventFile

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None


LOG = "log.jsonl"  # in the run's folder


class ProgressLog:
    """Writes RUN/log.jsonl and a TensorBoard file, and shows a progress bar on stderr.

    Args:
        run: folder of the run.
        start, stop: iterations done before, and when all are done.
        images_per_batch: for images per second.
        evaluated: False if the evaluation of iteration `start` is to be made again.

    Raises:
        InputError: a file can't be written or is not the log of a training.
    """

    def __init__(
        self, run: Path, start: int, stop: int, images_per_batch: int, *, evaluated: bool = True
    ) -> None:
        self._log = run / LOG
        cut_log(self._log, start, evaluated=evaluated)
        self._board = EventFile(run, start)
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
        _append(self._log, json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self._board.scalar(name, value, iteration)
        self._board.flush()

    def pictures(self, iteration: int, name: str, pictures: Sequence[np.ndarray]) -> None:
        """Pictures, BGR uint8 [H, W, 3], under one name."""
        for number, picture in enumerate(pictures):
            self._board.picture(f"{name}/{number}", picture, iteration)

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


def cut_log(path: Path, start: int, *, evaluated: bool = True) -> None:
    """Remove from a log the iterations after `start`, which a run that goes on logs again.

    A last line that was cut off goes too. What stays is not written anew.

    Args:
        evaluated: False removes also the evaluation of iteration `start`.

    Raises:
        InputError: it can't be read or written, or is not the log of a training.
    """
    try:
        content = path.read_bytes()
        *lines, rest = content.split(b"\n")
        entries = [_entry(line) for line in lines]
        rest = rest.strip(b"\0")  # left where a power cut came before the data
        if None in entries or not (rest.startswith(b"{") or rest == b""):
            number = entries.index(None) if None in entries else len(lines)
            raise InputError(
                f"line {number + 1} of {path} is not that of a training's log; move the file away."
            )
        size = 0
        for line, entry in zip(lines, entries, strict=True):
            assert entry is not None
            if entry["iteration"] > start:
                break
            if entry["iteration"] == start and not (evaluated or "loss/total" in entry):
                break
            size += len(line) + 1
        if size < len(content):
            os.truncate(path, size)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} can't be read and continued: {error.strerror}.") from None


def _entry(line: bytes) -> dict[str, Any] | None:
    """The content of a line of the log; None if it is something else."""
    try:
        entry = parse_json(line, "the line", InputError)
    except InputError:
        return None
    known = isinstance(entry, dict) and type(entry.get("iteration")) is int
    return entry if known else None


def _append(path: Path, text: str) -> None:
    """Append `text` whole or, if there is an error, nothing of it."""
    data = text.encode()
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
            except BaseException:
                file.truncate(size)
                raise
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}.") from None


def _memory_gb() -> float | None:
    """The most this process has held so far: of the GPU where it trains on one, else of memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
