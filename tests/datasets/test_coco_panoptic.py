"""Panoptic files are read as they are, and what is wrong with one is named with its segment."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from condinst_infer.datasets.coco_panoptic import (
    id_map,
    read_panoptic,
    read_results,
    relabel,
    run_starts,
)
from condinst_infer.errors import InputError
from tests.support.panoptic_files import CATEGORIES, coloured, made_up, segment, write_panoptic

IDS = np.zeros((4, 6), np.int64)
IDS[:2, :3], IDS[:2, 3:], IDS[2, :] = 5, 300, 70_000
SEGMENTS = [segment(5, 2), segment(300, 9, 1), segment(70_000, 40)]


def test_ids_are_red_green_and_blue_and_segments_what_the_json_lists(tmp_path: Path) -> None:
    truth = read_panoptic(write_panoptic(tmp_path / "a.json", [(IDS, SEGMENTS), made_up(0)]))
    assert [(c.id, c.is_thing) for c in truth.categories.values()] == [
        *((2, True), (3, False), (5, True), (9, True), (40, False), (41, False)),
    ]
    first, second = truth.images
    assert first.segments == ((5, 2, False), (300, 9, True), (70_000, 40, False))
    assert (first.id, first.file_name, first.size) == (0, "0.png", (4, 6))
    assert id_map(first).dtype == np.int32
    assert (id_map(first) == IDS).all() and (id_map(second) == made_up(0)[0]).all()
    assert made_up(0)[0].max() > 1 << 16  # else blue would be tested by one id only


def test_the_first_images_and_another_folder_of_pngs(tmp_path: Path) -> None:
    file = write_panoptic(tmp_path / "a.json", [made_up(seed) for seed in range(3)])
    assert [image.id for image in read_panoptic(file, limit=2).images] == [0, 7]
    (tmp_path / "a").rename(tmp_path / "b")
    (image, *_) = read_panoptic(file).images
    with pytest.raises(InputError, match=r"a/ids 0.png does not exist.*image 0 \(0.png\)"):
        id_map(image)
    (image, *_) = read_panoptic(file, tmp_path / "b").images
    assert (id_map(image) == made_up(0)[0]).all()


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        ([*SEGMENTS, segment(6, 2)], r"ids 0.png: segment 6, which .* image 0 .* has no pixel"),
        (SEGMENTS[:2], r"ids 0.png: segment 70000, 6 pixels, is not in .* image 0 \(0.png\)"),
        ([*SEGMENTS, segment(5, 9)], "a.json: .* image 0 can't .*two segments have the id 5"),
        ([*SEGMENTS, segment(6, 77)], r"a.json: .* image 0 .*segment 6 has category 77, not in"),
        ([segment(0, 2)], "image 0 can't be used: segment 0 has no id from 1 to 16777215"),
        ([segment(1 << 24, 2)], "segment 16777216 has no id"),
        ([{"id": "5", "category_id": 2}], "segment '5' has no id"),
        ([{"id": 5}], "KeyError"),
        (5, "TypeError"),
    ],
)
def test_a_segment_that_does_not_fit_is_named(tmp_path: Path, segments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        id_map(read_panoptic(write_panoptic(tmp_path / "a.json", [(IDS, segments)])).images[0])


@pytest.mark.parametrize(
    ("png", "says"),
    [
        (coloured(IDS.T), r"is 4 x 6 pixels, but the JSON says 6 x 4 of image 0"),
        (IDS.astype(np.uint8), "is no COCO panoptic PNG: it is L"),
        (
            np.dstack([coloured(IDS), IDS.astype(np.uint8)]),
            "is no .* PNG: it is RGBA, not 8-bit RGB",
        ),
        (None, "can't be read: cannot identify"),
    ],
)
def test_a_png_that_does_not_fit_is_named(
    tmp_path: Path, png: np.ndarray | None, says: str
) -> None:
    (image,) = read_panoptic(write_panoptic(tmp_path / "a.json", [(IDS, SEGMENTS)])).images
    if png is None:
        image.png.write_bytes(b"no picture")
    else:
        cv2.imwrite(str(image.png), png)
    with pytest.raises(InputError, match=f"ids 0.png {says}"):
        id_map(image)


def test_a_png_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (image,) = read_panoptic(write_panoptic(tmp_path / "a.json", [made_up(0)])).images
    image.png.write_bytes(image.png.read_bytes()[:-200])
    with pytest.raises(InputError, match="ids 0.png can't be read"):
        id_map(image)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": 3}, "is no COCO panoptic file: it has no list of images"),
        ({"annotations": []}, "it has no annotation"),
        ({"annotations": [{"id": 1, "image_id": 0, "segmentation": []}]}, "have no segments_info"),
        ({"categories": [{"id": 2, "name": "a"}]}, r"category 2 \(a\) has no isthing of 0 or 1"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "two categories have the same id"),
        ({"annotations": [{"segments_info": []}]}, "image number 1 can't be used: KeyError"),
        (
            {"annotations": [{"image_id": 9, "file_name": "a.png", "segments_info": []}]},
            "image 9 can't be used: its image is not in the file",
        ),
        (
            {"annotations": 2 * [{"image_id": 0, "file_name": "a.png", "segments_info": []}]},
            "image 0 can't be used: its image has two",
        ),
    ],
)
def test_what_is_no_panoptic_file_is_refused(tmp_path: Path, changes: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_panoptic(write_panoptic(tmp_path / "a.json", [(IDS, SEGMENTS)], changes))


def test_results_need_their_images_only(tmp_path: Path) -> None:
    pairs = [made_up(seed) for seed in range(3)]
    truth = read_panoptic(write_panoptic(tmp_path / "a.json", pairs), limit=2)
    file = write_panoptic(tmp_path / "found.json", pairs)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"annotations": content["annotations"][::-1]}))
    found = read_results(file, truth)
    assert [image.id for image in found.images] == [0, 7]
    for image, (ids, _) in zip(found.images, pairs, strict=False):
        assert (id_map(image) == ids).all()
    file.write_text(json.dumps({"annotations": content["annotations"][:1]}))
    with pytest.raises(InputError, match=r"found.json has nothing on image 7 \(1.png\)"):
        read_results(file, truth)
    for other in ("[]", '{"annotations": [{"bbox": []}]}'):
        file.write_text(other)
        with pytest.raises(InputError, match="no COCO panoptic result"):
            read_results(file, truth)


def test_relabelling_is_a_look_up_of_each_pixel() -> None:
    for seed in range(5):
        ids, _ = made_up(seed)
        new = {id_: number for number, id_ in enumerate(np.unique(ids).tolist(), 3)}
        expected = np.vectorize(new.get)(ids)
        assert (relabel(ids, new) == expected).all()
    assert run_starts(np.array([[4, 4], [4, 0], [0, 4]])).tolist() == [0, 3, 5]
