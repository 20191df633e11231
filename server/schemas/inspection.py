"""Wire types of `POST /v1/defense/inspect`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from server.schemas.chat import MAX_MESSAGES, ChatMessage
from server.schemas.defense import Effort, Level, Ranker, Verdict

EFFORTS: tuple[Effort, ...] = ("fast", "balanced")
"""Looked at where none is named."""


def _once(efforts: list[Effort]) -> list[Effort]:
    if len(set(efforts)) < len(efforts):
        raise PydanticCustomError("efforts", "Each level may be named once.")
    return efforts


class InspectRequest(BaseModel):
    """A question about images, to be looked at by the detectors; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str = Field(default="default", max_length=256)
    max_tokens: int | None = None
    efforts: Annotated[list[Effort], Field(min_length=1, max_length=3), AfterValidator(_once)] = (
        Field(default_factory=lambda: [*EFFORTS])
    )
    overlays: bool = True


class Region(BaseModel):
    """A rectangle of an image, in fractions of its width and height; images count from 0."""

    image: int
    left: float
    top: float
    right: float
    bottom: float


class Finding(BaseModel):
    """What one level of effort found.

    `score` is the largest score in the ranker's own unit, masked from `threshold` on; `masked` is
    the masked share of all images; `changed` says whether the answer differs from the undefended
    one; `overlays` are PNG data URLs, one for each image.
    """

    effort: Effort
    level: Level
    ranker: Ranker
    verdict: Verdict
    score: float
    threshold: float
    masked: float
    regions: list[Region]
    answer: str
    changed: bool
    milliseconds: float
    overlays: list[str] | None = None


class Inspection(BaseModel):
    """What the detectors found: `suspicious` if any of them masks something."""

    id: str
    object: Literal["defense.inspection"] = "defense.inspection"
    created: int
    model: str
    checkpoint: str
    verdict: Literal["nothing found", "suspicious"]
    undefended: str
    findings: list[Finding]
