"""The 80 COCO classes and their category ids, which have gaps."""

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


def classes_of(count: int) -> dict[str, tuple]:
    """`class_names` and `category_ids` of a model with `count` classes whose names are not known.

    80 are taken for COCO's; others are numbered.
    """
    if count == len(COCO_CLASS_NAMES):
        return {"class_names": COCO_CLASS_NAMES, "category_ids": COCO_CATEGORY_IDS}
    numbers = range(count)
    return {
        "class_names": tuple(f"class {i}" for i in numbers),
        "category_ids": tuple(i + 1 for i in numbers),
    }
