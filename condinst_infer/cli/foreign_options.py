"""Options that other tools or earlier versions have, and our words for them."""

from collections.abc import Mapping, Sequence

_POSITIONAL = "its name here is {0}, which stands without an option: condinst {{verb}} {1}"
_MODEL = _POSITIONAL.format("MODEL", "MODEL")
_SCORE = "its name here is --score-threshold"
_AT_TRAINING = (
    "the overlap from which NMS drops a box is nms_iou in the model file. A preset has it, and so "
    "does: condinst train --set nms_iou=0.6"
)
_SIZE = "the input size is part of the model file: condinst export MODEL -o FILE --size HxW"
_HALF = "the precision is part of the model file: condinst export MODEL -o FILE --precision fp16"
_RUNNING = ("predict", "eval", "bench", "serve")
_PER_REQUEST = "each request chooses its threshold: /predict?score_threshold=0.4"

# option: verb -> the part of the sentence after "VERB has no OPTION; "
FOREIGN: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(
        ("--conf", "--conf-thres"), {"predict": _SCORE, "export": _SCORE, "serve": _PER_REQUEST}
    ),
    **dict.fromkeys(
        ("--iou", "--iou-thres"),
        dict.fromkeys((*_RUNNING, "export"), _AT_TRAINING)
        | {"train": "it is --set nms_iou=0.6 here"},
    ),
    **dict.fromkeys(
        ("--imgsz", "--img", "--img-size"),
        dict.fromkeys(("predict", "eval", "serve"), _SIZE)
        | {
            "bench": "its name here is --size, as HxW, such as 512x736",
            "export": "its name here is --size, as HxW, such as 512x736",
            "train": "the sides of the network's input are --set short_side=640 and "
            "--set long_side=1024 here",
        },
    ),
    "--half": dict.fromkeys(_RUNNING, _HALF)
    | {
        "export": "it is --precision fp16 here",
        "build": "the precision is that of the .onnx file: condinst export MODEL -o FILE "
        "--precision fp16",
        "train": "it is --amp fp16 here",
    },
    "--source": {
        "predict": _POSITIONAL.format("SOURCE", "MODEL SOURCE"),
        "bench": "its name here is --image",
    },
    **dict.fromkeys(
        ("--weights", "--model"),
        dict.fromkeys((*_RUNNING, "export", "build"), _MODEL)
        | {
            "info": _POSITIONAL.format("FILE", "FILE"),
            "compare": _POSITIONAL.format("A and B", "A B"),
            "train": "a preset comes first, and initial weights are --init here: condinst train "
            "PRESET --init FILE",
        },
    ),
    "--batch-size": dict.fromkeys((*_RUNNING, "export"), "its name here is --batch")
    | {"train": "its name here is --images-per-batch"},
    "--epochs": {"train": "its name here is --iterations, a number of optimizer steps"},
    "--coco-json": {"predict": "it is --format coco, the default"},
    "--no-coco-json": {"predict": "it is --format none"},
    "--lr": {"train": "its name here is --learning-rate"},
    "--data": {
        "train": "a data set is a COCO file and a folder here: --train FILE --images DIR",
        "eval": "a data set is a COCO file and a folder here: --annotations FILE --images DIR",
    },
}


def advice(words: Sequence[str]) -> str | None:
    """The sentence about the first foreign option of a command line; None if there is none.

    Args:
        words: of the command line, the verb first of those that are no option.
    """
    verb = next((word for word in words if not word.startswith("-")), "")
    for word in words:
        if word == "--":  # what follows is positional
            return None
        option = word.partition("=")[0]
        reply = FOREIGN.get(option, {}).get(verb)
        if reply is not None:
            return f"{verb} has no {option}; {reply.format(verb=verb)}."
    return None
