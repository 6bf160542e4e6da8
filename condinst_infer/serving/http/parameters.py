"""What a request may ask for, in its query or in the fields of its form."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from condinst_infer.errors import did_you_mean

_DEFAULT = "; without it, what the model says"


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    output: Literal["json", "overlay"] | None = Field(
        None, description="an overlay is a PNG; without it, what Accept asks for, else JSON"
    )

    def options(self) -> dict[str, Any]:
        """Those of a call of the pipeline."""
        return self.model_dump(exclude={"output"})


class PredictParameters(_Parameters):
    """Of POST /predict."""

    score_threshold: float | None = Field(None, description="lowest score, 0 to 1")
    max_detections: int | None = Field(None, description="most instances")
    classes: str | None = Field(None, description="names or numbers, with commas")

    def options(self) -> dict[str, Any]:
        """Those of a call of the pipeline."""
        names = None if self.classes is None else [n.strip() for n in self.classes.split(",")]
        classes = names and tuple(int(n) if n.isdigit() else n for n in names if n)
        return super().options() | {"classes": classes}


class PanopticParameters(_Parameters):
    """Of POST /panoptic."""

    instance_threshold: float | None = Field(
        None, description=f"lowest score of an instance, 0 to 1{_DEFAULT}"
    )
    overlap_threshold: float | None = Field(
        None, description=f"an instance that loses more of its area is dropped{_DEFAULT}"
    )
    stuff_area_limit: int | None = Field(
        None, description=f"smaller stuff is void, pixels{_DEFAULT}"
    )


Parameters = PredictParameters | PanopticParameters


def merged(query: Parameters, fields: dict[str, str]) -> Parameters:
    """`query` with the fields of a form, which go before it; ValidationError as pydantic's."""
    return type(query).model_validate(query.model_dump(exclude_none=True) | fields)


def sentence(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors, for people."""
    first = errors[0]
    name = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        known = {*PredictParameters.model_fields, *PanopticParameters.model_fields}
        return f"there is no parameter {name!r} here{did_you_mean(name, known)}"
    text = first["msg"].removeprefix("Input ")
    return f"{name} is {first['input']!r}; it {text}."
