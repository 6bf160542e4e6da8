"""Parameters of a request, in the query or in the fields of a form."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from condinst_infer.errors import did_you_mean
from condinst_infer.processing.options import classes_from_text

_DEFAULT = "; without it, what the model says"


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    output: Literal["json", "overlay"] | None = Field(
        None, description="an overlay is a PNG; without it, what Accept asks for, else JSON"
    )

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline."""
        return self.model_dump(exclude={"output"})


class PredictParameters(_Parameters):
    """Parameters of POST /predict."""

    score_threshold: float | None = Field(None, description="lowest score, 0 to 1")
    max_detections: int | None = Field(None, description="most instances")
    classes: str | None = Field(None, description="names or numbers, with commas")

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline."""
        classes = None if self.classes is None else tuple(classes_from_text(self.classes))
        return super().options() | {"classes": classes}


class PanopticParameters(_Parameters):
    """Parameters of POST /panoptic."""

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


def merge_parameters(query: Parameters, fields: dict[str, str]) -> Parameters:
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
