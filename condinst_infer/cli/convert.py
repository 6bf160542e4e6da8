"""`condinst convert`."""

import argparse

from condinst_infer.datasets import cityscapes


def convert(args: argparse.Namespace) -> int:
    """Write a data set as COCO files, and say where they and the images are."""
    for split in args.split:
        done = cityscapes.convert(args.root, args.output, split, panoptic=args.panoptic)
        print(
            f"{split}: {done.images} images in {done.photographs}, {done.objects} objects and "
            f"{done.groups} groups -> {done.instances}"
        )
        if done.panoptic is not None:
            print(f"{split}: -> {done.panoptic} and {done.panoptic.with_suffix('')}/")
    return 0
