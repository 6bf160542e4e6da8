"""`condinst convert`: the annotations of a data set as COCO files."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from condinst_infer.cli.options import Verb, add_output
from condinst_infer.datasets import cityscapes


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `condinst convert`."""

    data: str
    root: Path
    output: Path
    split: Sequence[str]
    panoptic: bool


def add_options(parser: ArgumentParser) -> None:
    """Add the fields of `ConvertOptions`."""
    parser.add_argument("data", choices=("cityscapes",), help="the format of the data set")
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="the folder with leftImg8bit and gtFine"
    )
    add_output(parser, "DIR", "folder for the annotation files; created if missing")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "val", "test"),
        default=("train", "val"),
        help="splits to convert (default: train val)",
    )
    parser.add_argument(
        "--panoptic",
        action="store_true",
        help="also write COCO panoptic files, with 8 classes of things and 11 of stuff",
    )


def run(options: ConvertOptions) -> int:
    """Write the files, and print where they and the images are."""
    for split in options.split:
        done = cityscapes.convert(options.root, options.output, split, panoptic=options.panoptic)
        print(
            f"{split}: {done.images} images in {done.photographs}, {done.objects} objects and "
            f"{done.groups} groups -> {done.instances}"
        )
        if done.panoptic is not None:
            print(f"{split}: -> {done.panoptic} and {done.panoptic.with_suffix('')}/")
    return 0


VERB = Verb(
    "condinst convert cityscapes cityscapes/ -o coco\n"
    "  condinst train condinst_cityscapes_r50 --train coco/instances_train.json \\\n"
    "      --images cityscapes/leftImg8bit/train -o runs/street",
    add_options,
    ConvertOptions,
    run,
    outputs={"output": "folder"},
)
