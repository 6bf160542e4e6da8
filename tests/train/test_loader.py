"""The processes that load images: when they end, and when they don't."""

import signal
import time
from collections.abc import Generator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from condinst_infer.config.presets import preset
from condinst_infer.train.augment import AugmentConfig
from condinst_infer.train.loader import Batch, Positions, TrainingImages, training_batches
from condinst_infer.train.records import read_coco
from tests.support.coco_files import write_scenes


def batches_of(folder: Path) -> Generator[Batch, None, None]:
    """Nine batches of two images, made by one worker."""
    data = read_coco(write_scenes(folder, 3), folder / "images")
    images = TrainingImages(data, AugmentConfig(short_sides=(64,)), seed=0)
    positions = Positions(0, 9, batch=2, rank=0, processes=1)
    return training_batches(images, preset("condinst_nano"), positions, workers=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_worker_ignores_signals_from_its_first_moment(tmp_path: Path) -> None:
    """They are blocked before the worker exists, and ignored once it is ready."""
    batches = batches_of(tmp_path)
    (worker,) = active_children()
    next(batches)
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    masks = {
        line.split()[0]: int(line.split()[1], 16)
        for line in lines
        if line.startswith(("SigBlk", "SigIgn"))
    }
    both = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM))
    assert masks["SigBlk:"] & both == masks["SigIgn:"] & both == both
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches.close()
    assert active_children() == []


def test_a_worker_that_hangs_is_killed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    item = TrainingImages.__getitem__

    def hangs(self: TrainingImages, position: int) -> Any:
        if position >= 2:
            time.sleep(1000)
        return item(self, position)

    monkeypatch.setattr(TrainingImages, "__getitem__", hangs)
    batches = batches_of(tmp_path)
    next(batches)
    batches.close()
    assert active_children() == []
