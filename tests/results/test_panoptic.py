"""The panoptic segmentation of one image, made of a network's outputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condinst_infer.config.model import override
from condinst_infer.config.presets import preset
from condinst_infer.errors import ConfigError, InputError
from condinst_infer.processing.geometry import PlacedImage
from condinst_infer.processing.options import panoptic_settings
from condinst_infer.processing.postprocess import BatchOutputs, select_slots
from tests.support.results import CONFIG, RULES, SIZE, outputs, segmented


def test_segments_are_things_by_score_then_stuff() -> None:
    result = segmented()
    assert [segment.id for segment in result.segments] == [1, 2, 3, 4]
    assert [segment.name for segment in result.segments] == ["dog", "cat", "sky", "sea"]
    assert [segment.category_id for segment in result.segments] == [18, 17, 187, 155]
    assert [segment.is_thing for segment in result.segments] == [True, True, False, False]
    assert [segment.instance for segment in result.segments] == [0, 1, None, None]
    assert [segment.score for segment in result.segments[2:]] == [None, None]
    assert result.segments[1].score == result.instances.scores[1] == np.float32(0.7)
    assert len(result.instances) == 2 and result.id_map.dtype == np.int32
    for segment in result.segments:
        mask = result.id_map == segment.id
        y, x = np.nonzero(mask)
        assert segment.area == mask.sum() > 0
        assert segment.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
    assert (result.id_map == 0).sum() == SIZE[0] * SIZE[1] - sum(s.area for s in result.segments)
    assert (result.id_map[:, 84:] == 0).all()


def test_the_callers_thresholds_count() -> None:
    assert len(segmented(settings=replace(RULES, instance_threshold=0.75)).instances) == 1
    assert len(segmented(settings=replace(RULES, stuff_area_limit=10**6)).segments) == 2
    # the second loses 18 of 58 cells; the third, of score 0.4, is the whole image
    assert len(segmented(settings=replace(RULES, overlap_threshold=0.25)).segments) == 3
    floor = replace(RULES, instance_threshold=0.4, overlap_threshold=1.0)
    assert [s.is_thing for s in segmented(settings=floor).segments] == [True] * 3


def test_owners_of_slots_give_the_same_result() -> None:
    expected = segmented()
    found = outputs()
    placed = PlacedImage(np.zeros((*SIZE, 3), np.uint8), SIZE, SIZE)
    slots = select_slots(BatchOutputs(found), 0, placed, CONFIG, 0.45)
    assert slots.tolist() == [0, 2]
    numbers = np.concatenate([[0], slots + 1, [6, 7]]).astype(np.uint16)
    result = segmented(outputs=found, owners=numbers[expected.id_map])
    assert np.array_equal(result.id_map, expected.id_map)
    assert result.segments == expected.segments


def test_an_image_without_segments_is_void() -> None:
    found = outputs()
    found["num_detections"][:] = 0
    found["semantic"][:, 0] = 99
    result = segmented(outputs=found)
    assert result.segments == () and not result.id_map.any() and len(result.instances) == 0
    assert result.to_coco(3, "3.png") == {
        "image_id": 3,
        "file_name": "3.png",
        "segments_info": [],
    }
    assert result.image is not None and np.array_equal(result.plot(), result.image)


def test_models_without_stuff_are_refused() -> None:
    with pytest.raises(ConfigError, match="no semantic branch"):
        segmented(config=preset("condinst_nano"))


def test_more_kinds_of_stuff_than_labels_hold_are_refused() -> None:
    for count in (254, 255):
        names, ids = (f"stuff {i}" for i in range(count)), range(1000, 1000 + count)
        fields = {"stuff_names": tuple(names), "stuff_ids": tuple(ids)}
        if count == 254:
            assert override(CONFIG, **fields).is_panoptic
        else:
            with pytest.raises(ConfigError, match="may be 254"):
                override(CONFIG, **fields)


def test_a_threshold_below_what_the_model_reports_is_refused() -> None:
    with pytest.raises(ConfigError, match="lowest score"):
        panoptic_settings(CONFIG, instance_threshold=0.1)


def test_coco_entry_and_png_describe_the_same_segments(tmp_path: Path) -> None:
    result = segmented()
    entry = result.to_coco(7, "7.png")
    assert entry["image_id"] == 7 and entry["file_name"] == "7.png"
    ids = np.arange(SIZE[0] * SIZE[1], dtype=np.int32).reshape(SIZE) * 40
    for map_ in (result.id_map, ids):
        path = tmp_path / "folder" / "7.png"
        replace(result, id_map=map_).write_png(path)
        read = np.array(Image.open(path)).astype(np.int64)  # R, G, B
        assert np.array_equal(read @ [1, 256, 65536], map_)
        assert [file.name for file in path.parent.iterdir()] == ["7.png"]
    for info, segment in zip(entry["segments_info"], result.segments, strict=True):
        x, y, width, height = info["bbox"]
        assert (x, y, x + width, y + height) == segment.box
        assert info["area"] == segment.area and info["iscrowd"] == 0
        assert info["id"] == segment.id and info["category_id"] == segment.category_id
        assert info.get("score") == segment.score
    with pytest.raises(InputError, match=r"need a \.png"):
        result.write_png(tmp_path / "7.jpg")


def test_plot_colours_every_segment_and_leaves_void_alone() -> None:
    result = segmented()
    drawn = result.plot(labels=False)
    image = result.image
    assert image is not None and drawn.shape == image.shape
    changed = (drawn != image).any(2)
    for segment in result.segments:
        assert changed[result.id_map == segment.id].mean() > 0.9
    assert not changed[:, 88:].any()
    assert (result.plot(labels=True) != drawn).any()
    grey = np.zeros_like(image)
    assert (result.plot(grey, labels=False) != drawn).any()
    with pytest.raises(InputError, match="must be uint8"):
        result.plot(grey[1:])
    with pytest.raises(InputError, match="keeps no image"):
        replace(result, image=None).plot()
