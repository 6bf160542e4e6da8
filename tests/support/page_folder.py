"""The folder in which the code blocks of a page run: photographs, models and data sets.

| file | content |
| --- | --- |
| street.jpg, photos/ | a photograph; three photographs |
| scans/ | two micrographs, .png |
| traffic.mp4 | 12 frames |
| model.safetensors, model.onnx | a tiny network that finds up to 20 instances in any image |
| panoptic.safetensors, panoptic.onnx | a tiny panoptic network |
| nuclei.safetensors, nuclei.onnx, nuclei.jpg | the model that ships, and its micrograph |
| train.json, val.json | COCO instances files over photos/ |
| val2017/, instances_val2017.json | four photographs and their COCO instances file |
| cityscapes/ | the official tree of Cityscapes with six synthetic images |
| condinst_infer/data/, engines/capi/examples/ | as in a clone of the repository |
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from condinst_infer.config.class_names import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from tests.support.video_files import write_video

ROOT = Path(__file__).parents[2]
COCO8 = ROOT / "tests" / "data" / "coco8"
AS_IN_A_CLONE = ("condinst_infer/data", "engines/capi/examples")
STREET = "000000403385.jpg"
PHOTOS = ("000000196393.jpg", "000000214753.jpg", "000000331352.jpg")
VAL2017 = ("000000165518.jpg", "000000269314.jpg", "000000358083.jpg", "000000377575.jpg")
CITYSCAPES_IMAGES = (
    *(f"train/aachen/aachen_{number:06d}_000019" for number in range(4)),
    *(f"val/bonn/bonn_{number:06d}_000019" for number in range(2)),
)


class ModelFiles(NamedTuple):
    """Model files that tests/conftest.py writes."""

    checkpoint: Path
    onnx: Path
    panoptic_checkpoint: Path
    panoptic_onnx: Path


def write_page_folder(folder: Path, models: ModelFiles) -> None:
    """Make the folder and write the files of the table above."""
    folder.mkdir()
    for source, suffix in ((models.checkpoint, "safetensors"), (models.onnx, "onnx")):
        shutil.copy(source, folder / f"model.{suffix}")
    shutil.copy(models.panoptic_checkpoint, folder / "panoptic.safetensors")
    shutil.copy(models.panoptic_onnx, folder / "panoptic.onnx")
    for name in AS_IN_A_CLONE:
        shutil.copytree(ROOT / name, folder / name)
    for path in (ROOT / "condinst_infer" / "data").glob("nuclei.*"):
        shutil.copy(path, folder)
    shutil.copy(COCO8 / "images" / STREET, folder / "street.jpg")
    _write_photographs(folder, "photos", PHOTOS, "train.json", "val.json")
    _write_photographs(folder, "val2017", VAL2017, "instances_val2017.json")
    micrograph = cv2.imread(str(folder / "nuclei.jpg"))
    assert micrograph is not None
    (folder / "scans").mkdir()
    half = micrograph.shape[1] // 2
    cv2.imwrite(str(folder / "scans" / "left.png"), micrograph[:, :half])
    cv2.imwrite(str(folder / "scans" / "right.png"), micrograph[:, half:])
    write_video(folder / "traffic.mp4", 12)
    _write_cityscapes(folder / "cityscapes")


def _write_photographs(root: Path, name: str, photographs: tuple[str, ...], *files: str) -> None:
    """Copy some photographs of COCO to a folder, and write their objects to files beside it."""
    (root / name).mkdir()
    for photograph in photographs:
        shutil.copy(COCO8 / "images" / photograph, root / name)
    content: dict[str, Any] = json.loads((COCO8 / "instances.json").read_text())
    images = [image for image in content["images"] if image["file_name"] in photographs]
    ids = {image["id"] for image in images}
    objects = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    classes = zip(COCO_CATEGORY_IDS, COCO_CLASS_NAMES, strict=True)  # all 80, as COCO's files do
    categories = [{"id": id_, "name": name} for id_, name in classes]
    part = content | {"images": images, "annotations": objects, "categories": categories}
    for file in files:
        (root / file).write_text(json.dumps(part))


def _write_cityscapes(root: Path) -> None:
    """Write a car and a person on a road below the sky, moved from image to image."""
    for number, name in enumerate(CITYSCAPES_IMAGES):
        ids = np.full((64, 128), 7, np.uint16)  # road
        ids[:24] = 23  # sky
        ids[30:50, 8 * number : 8 * number + 40] = 26000  # car
        ids[20:56, 90:104] = 24000  # person
        photograph = root / "leftImg8bit" / f"{name}_leftImg8bit.png"
        truth = root / "gtFine" / f"{name}_gtFine_instanceIds.png"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        truth.parent.mkdir(parents=True, exist_ok=True)
        image = np.stack([ids % 251, ids // 256, ids % 7 * 30], -1).astype(np.uint8)
        cv2.imwrite(str(photograph), image)
        cv2.imwrite(str(truth), ids)
