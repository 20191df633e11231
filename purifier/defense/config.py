"""Settings of the defence."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    "attention",
    "gradient",
    "random",
]

PATCH_RANKERS: frozenset[RankerName] = frozenset({"occlusion"})
"""Rankers that work at level `patch` alone."""
PATCH_RANKER: RankerName = "occlusion"
"""What ranks at level `patch` where nobody chose a ranker."""

OCCLUSION_THRESHOLD = 5.0
"""Nats at one answer position below which a window is not masked: hiding it must make a token
150 times less likely. Chosen on the demo model; see docs/defence.md."""

TOKEN_RANKER: RankerName = "fisher"
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
        ranker: How saliency is measured; see `purifier.defense.rankers`. By default `occlusion`
            at level `patch`, `fisher` at level `token`.
        probes: Hutchinson probes m of `official` and `fisher`.
        top_k: Vocabulary entries kept at every answer position, K.
        temperature: Softens the first-step distribution before it is scored; 1 is the paper.
        pooling: Side of the square neighbourhood on the image plane over which patch saliency
            is averaged (`patch` only); 1 is none.
        threshold: Least score that is masked, in the ranker's own unit (nats for `occlusion` and
            `leave-one-out`); with it the ratio is the most that is masked. 0 masks the ratio. By
            default `OCCLUSION_THRESHOLD` for `occlusion`, 0 for the others.
        float64: Whether `official`, `fisher` and `exact` take probabilities, probes and products
            in float64, as the published code does, or in float32.
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
    float64: bool = True
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.ranker is None:
            ranker = TOKEN_RANKER if self.level == "token" else PATCH_RANKER
            object.__setattr__(self, "ranker", ranker)
        if self.threshold is None:
            least = OCCLUSION_THRESHOLD if self.ranker == "occlusion" else 0.0
            object.__setattr__(self, "threshold", least)
        for name in ("probes", "top_k", "pooling", "seed"):
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

    def adjusted(self, **given: Any) -> MaskingConfig:
        """These settings with some of them given anew, for a request or a command line.

        What was chosen for another setting is not kept: level `token` without a ranker takes
        `TOKEN_RANKER` in place of one that needs level `patch`, and another ranker without a
        threshold takes 0, for thresholds are in the ranker's own unit.

        Args:
            **given: Fields by name; None counts as not given.

        Raises:
            InvalidSetting: If a setting is out of range, or a ranker that was given does not
                work at the level.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("level", self.level) == "token" and self.ranker in PATCH_RANKERS:
            chosen.setdefault("ranker", TOKEN_RANKER)
        if chosen.get("ranker", self.ranker) != self.ranker:
            chosen.setdefault("threshold", None)
        return replace(self, **chosen)
