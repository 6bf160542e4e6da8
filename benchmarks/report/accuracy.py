"""Tables of the nuclei model: accuracy by artefact and group of images, and its training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.tables import markdown

RESULT = Path(__file__).parents[1] / "results" / "accuracy" / "nuclei.json"


def parts(result: Path = RESULT) -> dict[str, str]:
    """The tables and the line about the training by name."""
    nuclei = json.loads(result.read_text())
    training = nuclei["training"]
    environment = training.get("environment", nuclei["environment"])
    return {
        "accuracy": accuracy_table(nuclei["artefacts"]),
        "groups": group_table(nuclei["groups"]),
        "training": training_line(training, environment),
        "nuclei": nuclei_line(nuclei["artefacts"]),
    }


def nuclei_line(artefacts: Sequence[Mapping[str, Any]]) -> str:
    """The range of mask AP over the float artefacts, and over the int8 ones."""
    is_int8 = [" int8" in artefact["artefact"] for artefact in artefacts]
    values = [artefact["mask"]["AP"] for artefact in artefacts]
    floats = [f"{v:.1f}" for v, int8 in zip(values, is_int8, strict=True) if not int8]
    int8s = [f"{v:.1f}" for v, int8 in zip(values, is_int8, strict=True) if int8]
    return (
        f"The nuclei model reaches {_range(floats)} mask AP in fp32, fp16 and bf16, and "
        f"{_range(int8s)} in int8, on the 100 validation images of its data set."
    )


def _range(values: Sequence[str]) -> str:
    low, high = min(values, key=float), max(values, key=float)
    return low if low == high else f"{low} to {high}"


def accuracy_table(artefacts: Sequence[Mapping[str, Any]]) -> str:
    """One row per artefact of one model."""
    names = ("AP", "AP50", "AP75", "APS", "APM")
    rows = []
    for artefact in artefacts:
        masks = [artefact["mask"][name] for name in (*names, "AR")]
        numbers = [f"{value:.2f}" for value in (artefact["box"]["AP"], *masks)]
        rows.append([artefact["artefact"], *numbers])
    return markdown(["artefact", "box AP", *(f"mask {name}" for name in names), "mask AR"], rows)


def group_table(groups: Sequence[Mapping[str, Any]]) -> str:
    """One row per kind of image."""
    rows = []
    for group in groups:
        numbers = [f"{group[name]:.1f}" for name in ("AP", "AP50")]
        rows.append([group["group"], str(group["images"]), str(group["nuclei"]), *numbers])
    return markdown(["images", "how many", "nuclei", "mask AP", "mask AP50"], rows)


def training_line(training: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Time and memory of a training."""
    return (
        f"{training['iterations']} batches of {training['images_per_batch']} crops, "
        f"{training['images_per_second']:.1f} crops a second, {training['minutes']:.0f} minutes "
        f"and {training['memory_gb']:.1f} GB beside two loader processes ({environment['cpu']}, "
        f"{environment['cores']} cores, torch {environment['packages']['torch']})."
    )
