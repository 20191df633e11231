"""The `defense` object of a chat request, and the `defense` block of its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["token", "patch"]
Ranker = Literal[
    "official",
    "fisher",
    "exact",
    "leave-one-out",
    "occlusion",
    "two-stage",
    "group-testing",
    "knockout",
    "attention",
    "gradient",
    "random",
]
Effort = Literal["fast", "balanced", "thorough"]
Probing = Literal["knockout", "masking"]
Method = Literal["disp", "certified"]
Verdict = Literal["nothing found", "masked", "suspicious", "certified", "not certified"]
NotApplied = Literal["disabled", "no_image"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed that every random generator accepts."""


class CertifyRequest(BaseModel):
    """How large a trigger may be that a certified answer does not depend on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    window: float | None = None
    masks: int | None = None
    tries: int | None = None


class CertifyReport(BaseModel):
    """What a certified answer is certified against, and what it took.

    `window` is the longest side of a trigger as a share of the image's; `agreement` the share of
    the masks that say the same, and `answers` the masked images that were answered.
    """

    window: float
    masks: int
    tries: int
    agreement: float
    answers: int


class DefenseRequest(BaseModel):
    """How this one answer is defended; a field left out keeps the server's setting.

    `method` `certified` has settings of its own, `certify`, and takes none of the others.

    What belongs to another setting is not kept: `level` `token` without a `ranker` takes
    `two-stage` if the server's ranker needs level `patch`, and another `ranker` without a
    `threshold` takes that ranker's default. Unknown fields are refused: a misspelt name must
    not weaken the defence unnoticed.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    enabled: bool = True
    method: Method = "disp"
    certify: CertifyRequest | None = None
    effort: Effort | None = None
    level: Level | None = None
    ratio: float | None = None
    ranker: Ranker | None = None
    threshold: float | None = None
    probes: int | None = None
    top_k: int | None = None
    temperature: float | None = None
    pooling: int | None = None
    shortlist: int | None = None
    verify: int | None = None
    gate: float | None = None
    probed: int | None = None
    probing: Probing | None = None
    float64: bool | None = None
    scored_length: int | None = None
    seed: Seed | None = None
    return_saliency: bool = False


class SaliencyMap(BaseModel):
    """Saliency and mask of one image on its image plane, row by row from the top left.

    `saliency` is non-negative; `masked` is the masked share of every cell, 0 to 1.
    """

    rows: int
    columns: int
    saliency: list[list[float]]
    masked: list[list[float]]


class DetectionReport(BaseModel):
    """What the detector that a checkpoint carries says of a request.

    `score` is 0 for the mean row of the training set and 1 for the mean row that was flagged there;
    from `threshold` on a request counts as triggered. `pattern` is whether an image shows a part
    that recurred in the training set; it is masked, and counts as a score of 1, as a known phrase
    does. `left` is the score of what was answered, null where nothing but these is looked at, and
    `left_out` the words of the question that it was given without.
    """

    score: float
    threshold: float
    left: float | None
    pattern: bool = False
    left_out: str = ""


class DefenseReport(BaseModel):
    """What the defence did to this answer.

    `masked` and `total` count units: visual tokens at level `token`, cells of the image
    plane at level `patch`; none is masked if no score reaches the threshold. `verdict` says which
    of both it was, or `suspicious` where the checkpoint's detector was silent only once most of the
    image was masked, or not at all, or where an image forces the answer and no part of it that may
    be masked explains that; `detection` is what that detector said. `score` is the largest
    score in the ranker's own unit. `timings` are milliseconds by part of the request. The settings
    are those that were used; they are null where the defence was not applied.

    Of method `certified` the settings of masking are null, nothing counts as masked, and
    `certified` says what was done; without a certificate the verdict is `not certified`, and
    there is no answer.
    """

    applied: bool
    reason: NotApplied | None = None
    method: Method = "disp"
    certified: CertifyReport | None = None
    level: Level | None = None
    ratio: float | None = None
    ranker: Ranker | None = None
    threshold: float | None = None
    probes: int | None = None
    top_k: int | None = None
    temperature: float | None = None
    pooling: int | None = None
    shortlist: int | None = None
    verify: int | None = None
    gate: float | None = None
    probed: int | None = None
    probing: Probing | None = None
    float64: bool | None = None
    scored_length: int | None = None
    seed: int | None = None
    verdict: Verdict | None = None
    detection: DetectionReport | None = None
    score: float | None = None
    masked: int = 0
    total: int = 0
    checkpoint: str
    timings: dict[str, float]
    saliency: list[SaliencyMap] | None = None
