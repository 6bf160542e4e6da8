"""Class names and category ids of COCO and Cityscapes, and labels from names."""

from collections.abc import Iterable, Sequence
from typing import Any

from condinst_infer.config.bounds import MAX_CLASSES
from condinst_infer.errors import ConfigError, did_you_mean

COCO_CATEGORY_IDS = (
    *range(1, 12),
    *range(13, 26),
    27,
    28,
    *range(31, 45),
    *range(46, 66),
    67,
    70,
    *range(72, 83),
    *range(84, 91),
)

COCO_CLASS_NAMES: tuple[str, ...] = tuple(
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,
umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,
skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,
sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,
toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,
clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)


# the stuff of the panoptic task
COCO_STUFF_IDS: tuple[int, ...] = tuple(
    map(
        int,
        """92,93,95,100,107,109,112,118,119,122,125,128,130,133,138,141,144,145,147,148,149,151,154,
155,156,159,161,166,168,171,175,176,177,178,180,181,184,185,186,187,188,189,190,191,192,
193,194,195,196,197,198,199,200""".split(","),
    )
)

COCO_STUFF_NAMES: tuple[str, ...] = tuple(
    """banner,blanket,bridge,cardboard,counter,curtain,door-stuff,floor-wood,flower,fruit,gravel,
house,light,mirror-stuff,net,pillow,platform,playingfield,railroad,river,road,roof,sand,sea,
shelf,snow,stairs,tent,towel,wall-brick,wall-stone,wall-tile,wall-wood,water-other,
window-blind,window-other,tree-merged,fence-merged,ceiling-merged,sky-other-merged,
cabinet-merged,table-merged,floor-other-merged,pavement-merged,mountain-merged,grass-merged,
dirt-merged,paper-merged,food-other-merged,building-other-merged,rock-merged,
wall-other-merged,rug-merged""".replace("\n", "").split(",")
)


def classes_of(count: int) -> dict[str, Any]:
    """`class_names` and `category_ids` of a model with `count` classes without known names.

    80 are taken for COCO's; others are numbered.
    """
    if not 0 < count <= MAX_CLASSES:
        raise ConfigError(f"there are {count} classes; there must be 1 to {MAX_CLASSES}.")
    if count == len(COCO_CLASS_NAMES):
        return {"class_names": COCO_CLASS_NAMES, "category_ids": COCO_CATEGORY_IDS}
    numbers = range(count)
    return {
        "class_names": tuple(f"class {i}" for i in numbers),
        "category_ids": tuple(i + 1 for i in numbers),
    }


CITYSCAPES_CLASS_NAMES = (
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)


CITYSCAPES_STUFF_NAMES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
)


def labels_from_classes(
    classes: int | str | Iterable[int | str], class_names: Sequence[str]
) -> tuple[int, ...]:
    """Class indices for `classes`, each an index or a name; ConfigError for an unknown one."""
    labels: list[int] = []
    for item in [classes] if isinstance(classes, (int, str)) else classes:
        if isinstance(item, str):
            matches = [i for i, name in enumerate(class_names) if name == item]
            if not matches:
                name = item[:60]  # a message is no place for more
                hint = did_you_mean(name, class_names, 3)
                raise ConfigError(f"this model has no class {name!r}{hint}")
            labels += matches
        elif 0 <= item < len(class_names):
            labels.append(int(item))
        else:
            raise ConfigError(
                f"this model has no class {item}; indices go from 0 to {len(class_names) - 1}."
            )
    return tuple(labels)
