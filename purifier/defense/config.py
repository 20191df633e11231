"""Settings of the defence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from purifier.errors import InvalidSetting
from purifier.settings import require_seed, require_whole

Level = Literal["token", "patch"]
RankerName = Literal[
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

Probing = Literal["knockout", "masking"]
Effort = Literal["fast", "balanced", "thorough"]

SCORED_LENGTH = 32
"""Positions of the response that are scored at least, where nobody chose a number: the whole
response of the default length."""

N_WINDOWS = 25
"""Windows that the plane of an image is divided into, at most (`purifier.defense.windows`)."""

PATCH_RANKERS: frozenset[RankerName] = frozenset({"occlusion"})
"""Rankers that work at level `patch` alone."""
PATCH_RANKER: RankerName = "two-stage"
"""What ranks at level `patch` where nobody chose a ranker."""

OCCLUSION_THRESHOLD = 5.0
"""Nats at one answer position below which a window is not masked: hiding it must make a token
150 times less likely. Chosen on the demo model; see docs/defence.md."""

TWO_STAGE_THRESHOLD = 4.0
"""The same of `two-stage`, which tries one window or two: of clean images fewer windows
are tried, so a lower threshold masks as few of them. Chosen on the demo model."""

TOKEN_THRESHOLD = 2.0
"""The same where the window is hidden behind the encoder, by masks or from sight: other visual
tokens have seen it, and the change is smaller. Chosen on the demo model."""

TOKEN_RANKER: RankerName = "two-stage"
"""What ranks at level `token` where the ranker is one of `PATCH_RANKERS` and nobody chose it."""


@dataclass(frozen=True)
class MaskingConfig:
    """What is masked, how much of it, and by which saliency.

    Attributes:
        level: `patch` finds the guilty patches before the encoder and fills their pixels;
            `token` replaces visual embeddings after the encoder by the mask embedding (the
            paper's place).
        ratio: Mask ratio: the fraction of each image's visual tokens (`token`) or of its plane
            (`patch`) that is masked.
        ranker: How saliency is measured; see `purifier.defense.rankers`. By default
            `two-stage`, at both levels.
        probes: Hutchinson probes m of `official` and `fisher`.
        top_k: Vocabulary entries kept at every answer position, K.
        temperature: Softens the first-step distribution before it is scored; 1 is the paper.
        pooling: Side of the square neighbourhood on the image plane over which patch saliency
            is averaged (`patch` only); 1 is none.
        threshold: Least score that is masked, in the ranker's own unit (nats for `occlusion`,
            `two-stage`, `knockout` and `leave-one-out`); with it the ratio is the most that is
            masked. 0 masks the ratio. By default see `default_threshold`.
        shortlist: Windows of an image that knockout is run for, those that most attention goes to.
        verify: Windows of an image that `two-stage` masks for a trial; attention and knockout
            name them in turn. One more where knockout moves the answer and none of them decides it.
        gate: Nats of knockout below which `two-stage` tries no mask, and nats that masking the
            whole image must move the answer by for a search of `group-testing`; 0 goes on anyway.
        probed: Random masks that `group-testing` probes an image with.
        probing: How: `knockout` runs the answer positions alone, `masking` the whole request.
        float64: Whether `official`, `fisher` and `exact` take probabilities, probes and products
            in float64, as the published code does, or in float32.
        scored_length: Positions of the response that are scored at least. Where the first block
            is longer, all of it is; a shorter response is scored whole. 1 scores the first block
            alone, as the published code does.
        seed: Seed of the probes and of the random ranker.
    """

    level: Level = "patch"
    ratio: float = 0.1
    ranker: RankerName = None  # type: ignore[assignment]  # resolved below, by level
    probes: int = 6
    top_k: int = 5
    temperature: float = 1.0
    pooling: int = 3
    threshold: float = None  # type: ignore[assignment]  # resolved below, by ranker
    shortlist: int = 8
    verify: int = 1
    gate: float = 0.0
    probed: int = 32
    probing: Probing = "knockout"
    float64: bool = True
    scored_length: int = SCORED_LENGTH
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.ranker is None:
            ranker = TOKEN_RANKER if self.level == "token" else PATCH_RANKER
            object.__setattr__(self, "ranker", ranker)
        if self.threshold is None:
            object.__setattr__(self, "threshold", default_threshold(self.level, self.ranker))
        for name in (
            "probes",
            "top_k",
            "pooling",
            "shortlist",
            "verify",
            "scored_length",
            "probed",
            "seed",
        ):
            require_whole(getattr(self, name), name)
        require_seed(self.seed)
        if not isinstance(self.float64, bool):
            raise InvalidSetting("float64 must be true or false.", param="float64")
        if self.level not in get_args(Level):
            raise InvalidSetting(
                f"level must be one of {', '.join(get_args(Level))}.", param="level"
            )
        if self.ranker not in get_args(RankerName):
            raise InvalidSetting(
                f"ranker must be one of {', '.join(get_args(RankerName))}.", param="ranker"
            )
        if self.ranker in PATCH_RANKERS and self.level != "patch":
            raise InvalidSetting(f"ranker {self.ranker} needs level patch.", param="ranker")
        if not 0.0 <= self.threshold <= 1000.0:
            raise InvalidSetting("threshold must be between 0 and 1000.", param="threshold")
        if not 0.0 <= self.ratio <= 1.0:
            raise InvalidSetting("ratio must be between 0 and 1.", param="ratio")
        if not 1 <= self.probes <= 1024:
            raise InvalidSetting("probes must be between 1 and 1024.", param="probes")
        if not 2 <= self.top_k <= 1000:
            raise InvalidSetting("top_k must be between 2 and 1000.", param="top_k")
        if not 0.1 <= self.temperature <= 100.0:
            raise InvalidSetting("temperature must be between 0.1 and 100.", param="temperature")
        if self.pooling not in (1, 3, 5, 7, 9):
            raise InvalidSetting("pooling must be 1, 3, 5, 7 or 9.", param="pooling")
        for name in ("shortlist", "verify"):
            if not 1 <= getattr(self, name) <= N_WINDOWS:
                raise InvalidSetting(f"{name} must be between 1 and {N_WINDOWS}.", param=name)
        if not 1 <= self.scored_length <= 4096:
            raise InvalidSetting("scored_length must be between 1 and 4096.", param="scored_length")
        if not 1 <= self.probed <= 256:
            raise InvalidSetting("probed must be between 1 and 256.", param="probed")
        if self.probing not in get_args(Probing):
            raise InvalidSetting(
                f"probing must be one of {', '.join(get_args(Probing))}.", param="probing"
            )
        if not 0.0 <= self.gate <= 1000.0:
            raise InvalidSetting("gate must be between 0 and 1000.", param="gate")

    def adjusted(self, *, effort: Effort | None = None, **given: Any) -> MaskingConfig:
        """These settings with some of them given anew, for a request or a command line.

        What was chosen for another setting is not kept: level `token` without a ranker takes
        `TOKEN_RANKER` in place of `group-testing` and of one that needs level `patch`. Another
        ranker without a threshold or a gate takes its own, for both are in the ranker's own unit,
        and without a ratio the default in place of that of a level of effort. Another level takes
        its own threshold, where that was the default of the one before.

        Args:
            effort: A level of effort, which stands for several fields; those given go before it.
            **given: Fields by name; None counts as not given.

        Raises:
            InvalidSetting: If a setting is out of range, or a ranker that was given does not
                work at the level.
        """
        chosen = with_effort(effort, {k: v for k, v in given.items() if v is not None})
        to_token = chosen.get("level", self.level) == "token" != self.level
        if to_token and self.ranker in (*PATCH_RANKERS, "group-testing"):
            chosen.setdefault("ranker", TOKEN_RANKER)
        own = self.threshold == default_threshold(self.level, self.ranker)
        other_level = chosen.get("level", self.level) != self.level
        other_ranker = chosen.get("ranker", self.ranker) != self.ranker
        if other_ranker or (own and other_level):
            chosen.setdefault("threshold", None)
        if other_ranker:
            chosen.setdefault("gate", MaskingConfig.gate)
            if any(self.ratio == level["ratio"] for level in EFFORTS.values()):
                chosen.setdefault("ratio", MaskingConfig.ratio)
        return replace(self, **chosen)


EFFORTS: Mapping[Effort, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {"ranker": "two-stage", "ratio": 0.1, "gate": 0.0},
        "balanced": {
            "ranker": "group-testing",
            "ratio": 0.4,
            "gate": 9.0,
            "probing": "knockout",
            "probed": 32,
        },
        "thorough": {
            "ranker": "group-testing",
            "ratio": 0.5,
            "gate": 6.0,
            "probing": "masking",
            "probed": 16,
        },
    }
)
"""What each level of effort stands for: what is looked for, and how much of an image may be masked.
`fast` finds what lies in one window, `balanced` also what lies in several or is larger, `thorough`
also what the model's own attention hides from `balanced`."""


def with_effort(effort: Effort | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a level of effort stands for, and the fields that were given in its place.

    Raises:
        InvalidSetting: If there is no such level.
    """
    if effort is None:
        return dict(given)
    if effort not in get_args(Effort):
        raise InvalidSetting(
            f"effort must be one of {', '.join(get_args(Effort))}.", param="effort"
        )
    return {**EFFORTS[effort], **given}


def default_threshold(level: Level, ranker: RankerName) -> float:
    """What a ranker's threshold is where nobody chose one; 0 for those without a natural unit."""
    if ranker == "knockout" or (level == "token" and ranker in ("two-stage", "group-testing")):
        return TOKEN_THRESHOLD
    own = {
        "occlusion": OCCLUSION_THRESHOLD,
        "two-stage": TWO_STAGE_THRESHOLD,
        "group-testing": TWO_STAGE_THRESHOLD,
    }
    return own.get(ranker, 0.0)
