"""Classes without names, for configurations of small networks."""

from typing import Any

from condinst_infer.config.class_names import classes_of


def numbered_classes(count: int) -> dict[str, Any]:
    """The fields of a configuration with `count` classes."""
    return {"num_classes": count, **classes_of(count)}
