"""What all parts of the settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"  # what may name a run, a perspective or a model: safe in any path


def _rising(bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the least, {bounds[0]}, is more than the most, {bounds[1]}")
    return bounds


Bounds = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_rising)]  # of an autoscaling pool of actors


class Section(BaseModel):
    """A part of the settings. It takes no name that it doesn't know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
