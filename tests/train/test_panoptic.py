"""Panoptic data trains a panoptic model: objects that don't overlap, and stuff behind them."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer import checkpoint
from condinst_infer.config.presets import preset
from condinst_infer.errors import InputError
from condinst_infer.train.augment import AugmentConfig, augment, augment_map
from condinst_infer.train.image_check import check_training_images
from condinst_infer.train.loader import Collate, Sample, TrainingImages
from condinst_infer.train.records import owners_from_record, read_coco_panoptic
from condinst_infer.train.run import DataPaths, train
from condinst_infer.train.targets import IGNORED
from tests.support.command_line import Run, assert_refused
from tests.support.panoptic_files import made_up, photograph, segment, write_panoptic
from tests.support.small_training import (
    command_line,
    losses_of,
    small_config,
    small_data,
    small_settings,
)

PANOPTIC: dict[str, Any] = {
    "neck_in_levels": (2, 3, 4, 5),
    "stuff_names": ("any",),
    "stuff_ids": (1000,),
    "short_side": 64,
    "long_side": 96,
    "stuff_area_limit": 20,
}


@pytest.fixture
def data(tmp_path: Path) -> DataPaths:
    """Five made-up images."""
    file = write_panoptic(tmp_path / "panoptic.json", [made_up(seed) for seed in range(5)])
    return DataPaths(file, tmp_path / "images")


def images_of(data: DataPaths, **augment: Any) -> TrainingImages:
    settings = AugmentConfig(**{"short_sides": (60,), "horizontal_flip": False, **augment})
    return TrainingImages(read_coco_panoptic(*data), settings, seed=3)


def test_things_are_objects_and_stuff_has_channels(tmp_path: Path) -> None:
    ids = np.zeros((7, 8), np.int64)
    for number, id_ in enumerate((4, 5, 900, 70_000, 8, 9)):
        ids[number] = id_
    kinds = ((4, 9), (5, 41), (900, 2), (70_000, 3))
    crowds = [segment(8, 9, crowd=1), segment(9, 41, crowd=1)]
    segments = [*(segment(id_, kind) for id_, kind in kinds), *crowds]
    file = write_panoptic(tmp_path / "panoptic.json", [(ids, segments)])
    data = read_coco_panoptic(file, tmp_path / "images")
    assert (data.class_names, data.category_ids) == (("thing 2", "thing 5", "thing 9"), (2, 5, 9))
    assert (data.stuff_names, data.stuff_ids) == (("stuff 3", "stuff 40", "stuff 41"), (3, 40, 41))
    assert data.skipped == {"crowd regions": 2}
    (record,) = data.records
    assert [a.label for a in record.annotations] == [2, 0]
    # two objects, then the three kinds of stuff; crowds and void are 0
    assert owners_from_record(record, data.stuff_ids)[:, 0].tolist() == [1, 5, 2, 3, 0, 0, 0]


def test_a_sample_is_what_the_segments_say(data: DataPaths) -> None:
    images = images_of(data)
    for position in range(5):
        sample = images[position]
        number = int(Path(sample.name).stem)
        ids, segments = made_up(number)
        assert (sample.image == photograph(ids)).all() and sample.stuff is not None
        things = [s for s in segments if s["category_id"] in (2, 5, 9) and not s["iscrowd"]]
        assert len(things) > 3
        for info, mask, label in zip(things, sample.masks, sample.labels, strict=True):
            assert (mask == (ids == info["id"])).all()
            assert label == (2, 5, 9).index(info["category_id"])
        expected = np.full(ids.shape, IGNORED)
        for info in segments:
            if not info["iscrowd"]:
                channel = {3: 1, 40: 2, 41: 3}.get(info["category_id"], 0)
                expected[ids == info["id"]] = channel
        assert (sample.stuff == expected).all() and set(np.unique(expected)) >= {-1, 0}


@pytest.mark.parametrize("short_side", [40, 60, 121])
@pytest.mark.parametrize("crop", [0, 37])
def test_segments_follow_their_image_through_every_change(
    data: DataPaths, short_side: int, crop: int
) -> None:
    options = {"horizontal_flip": True, "vertical_flip": True, "rotate": True, "crop": crop}
    images = images_of(data, short_sides=(short_side,), **options)
    seen = set()
    for position in range(20):
        sample = images[position]
        assert sample.masks.sum(0).max() <= 1  # none overlaps another
        assert sample.stuff is not None and (sample.stuff[sample.masks.any(0)] == 0).all()
        assert sample.masks.any((1, 2)).all() and len(sample.masks) == len(sample.labels)
        ids, segments = made_up(int(Path(sample.name).stem))
        things = [s for s in segments if s["category_id"] in (2, 5, 9) and not s["iscrowd"]]
        colours = {tuple(photograph(np.array([s["id"]]))[0].tolist()): s for s in things}
        for mask, label in zip(sample.masks, sample.labels, strict=True):
            # away from its edge an object has its colour, as near as resampling leaves it
            inside = cv2.erode(np.pad(mask.astype(np.uint8), 1), np.ones((7, 7)))[1:-1, 1:-1]
            if inside.any():
                (colour,) = np.unique(sample.image[inside > 0], axis=0)
                assert (2, 5, 9).index(colours[tuple(colour.tolist())]["category_id"]) == label
                seen.add(position)
    assert len(seen) > 15


def test_labels_vary_with_the_same_image_as_masks_do() -> None:
    ids, _ = made_up(0)
    for seed in range(6):
        settings = AugmentConfig(short_sides=(40, 80), rotate=True, crop=33, colour_jitter=0.4)
        one, _ = augment(photograph(ids), [], np.random.default_rng(seed), settings)
        labels = (ids % 1000).astype(np.uint16)
        rng = np.random.default_rng(seed)
        other, varied = augment_map(photograph(ids), labels, rng, settings)
        assert (one == other).all() and varied.shape == one.shape[:2]
        assert varied.dtype == np.uint16 and set(np.unique(varied)) <= set(np.unique(labels))


def test_a_batch_has_stuff_at_stride_4_and_ignores_padding(data: DataPaths) -> None:
    images = images_of(data, short_sides=(50, 70))
    samples = [images[position] for position in range(4)]
    assert len({sample.image.shape for sample in samples}) > 1
    batch = Collate(preset("condinst_nano"))(samples)
    height, width = batch.images.shape[1:3]
    for sample, truth in zip(samples, batch.truths, strict=True):
        assert truth.stuff is not None and sample.stuff is not None
        assert truth.stuff.shape == (height // 4, width // 4) and truth.stuff.is_contiguous()
        sampled = sample.stuff[2::4, 2::4]
        rows, columns = sampled.shape
        assert (truth.stuff[:rows, :columns].numpy() == sampled).all()
        assert (truth.stuff[rows:] == IGNORED).all() and (truth.stuff[:, columns:] == IGNORED).all()


def test_instances_have_no_stuff() -> None:
    masks = np.ones((1, 40, 50), bool)
    sample = Sample("a.png", np.zeros((40, 50, 3), np.uint8), masks, np.zeros(1, np.int64))
    (truth,) = Collate(preset("condinst_nano"))([sample]).truths
    assert sample.stuff is None and truth.stuff is None


def test_a_run_has_the_stuff_of_its_data_and_is_judged_by_pq(
    data: DataPaths, tmp_path: Path, condinst: Run
) -> None:
    run = tmp_path / "run"
    words = command_line(data, run, **PANOPTIC, iterations=2, eval_every=2)
    status, out, err = condinst(*words, "--val", data.annotations)
    assert status == 0, err
    assert "5 images" in out and "3 classes, 3 kinds of stuff" in out and "PQ" in out
    config = checkpoint.load(run / "best.safetensors").config
    assert config.panoptic.stuff_names == ("stuff 3", "stuff 40", "stuff 41")
    assert (config.panoptic.stuff_ids, config.category_ids) == ((3, 40, 41), (2, 5, 9))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[0]["loss/panoptic"] == pytest.approx(0.5 * np.log(4), rel=0.1)  # it knows nothing
    assert set(rows[-1]) >= {"all/PQ", "things/SQ", "stuff/RQ"}


def test_an_interrupted_panoptic_run_goes_on_as_if_nothing_had_happened(
    data: DataPaths, tmp_path: Path
) -> None:
    config = small_config(**PANOPTIC)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, small_settings(iterations=4), data, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condinst_infer.train.trainer.learning_rate", stopping_at_the_third())
        with pytest.raises(KeyboardInterrupt):
            train(config, small_settings(iterations=4), data, parts)
    train(config, small_settings(iterations=4), data, parts, resume=True)
    assert losses_of(parts) == losses_of(whole) and "loss/panoptic" in losses_of(whole)[0]


def stopping_at_the_third() -> Any:
    from condinst_infer.train.optimizer import learning_rate

    def rate(done: int, settings: Any) -> float:
        if done == 2:
            raise KeyboardInterrupt
        return learning_rate(done, settings)

    return rate


def test_data_of_the_other_kind_is_refused_in_one_line(
    data: DataPaths, tmp_path: Path, condinst: Run
) -> None:
    instances, run = small_data(tmp_path / "other"), tmp_path / "run"
    for words, says in (
        (command_line(data, run), "panoptic.json is a COCO panoptic file and an instances file"),
        (command_line(instances, run, **PANOPTIC), "instances.json is no COCO panoptic file"),
        (
            (*command_line(data, run, **PANOPTIC), "--val", instances.annotations),
            "instances.json is no COCO panoptic file",
        ),
    ):
        assert_refused(condinst(*words), says)
        assert not run.exists()


@pytest.mark.parametrize(("isthing", "lacking"), [(1, "stuff"), (0, "things")])
def test_data_without_things_or_stuff_is_refused(
    data: DataPaths, isthing: int, lacking: str
) -> None:
    content = json.loads(data.annotations.read_text())
    content["categories"] = [c | {"isthing": isthing} for c in content["categories"]]
    data.annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"has no category of {lacking}"):
        read_coco_panoptic(*data)


def test_missing_photographs_and_pngs_are_named_before_training(data: DataPaths) -> None:
    elsewhere = read_coco_panoptic(data.annotations, data.images / "none")
    with pytest.raises(InputError, match="5 of 10 images .* The image folder must be"):
        check_training_images(elsewhere, data.annotations)
    (data.annotations.with_suffix("") / "ids 0.png").unlink()
    with pytest.raises(InputError, match=r"Do not exist: 1 \(.*/ids 0.png\)"):
        check_training_images(read_coco_panoptic(*data), data.annotations)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_segment_that_is_not_there_stops_the_run_with_its_name(
    data: DataPaths, tmp_path: Path, workers: int
) -> None:
    for number in range(5):  # whichever comes first
        path = data.annotations.with_suffix("") / f"ids {number}.png"
        cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path))))
    says = r"^/[^ ]*/ids \d.png: segment \d+, which the JSON lists for .* has no pixel.$"
    with pytest.raises(InputError, match=says):
        train(small_config(**PANOPTIC), small_settings(workers=workers), data, tmp_path / "run")
