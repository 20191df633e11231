"""Settings of the defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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


@dataclass(frozen=True)
class MaskingConfig:
    """What is masked, how much of it, and by which saliency.

    Attributes:
        level: `patch` finds the guilty patches before the encoder and fills their pixels;
            `token` replaces visual embeddings after the encoder by the mask embedding (the
            paper's place).
        ratio: Mask ratio: the fraction of each image's visual tokens (`token`) or of its plane
            (`patch`) that is masked.
        ranker: How saliency is measured; see `purifier.defense.rankers`.
        probes: Hutchinson probes m of `official` and `fisher`.
        top_k: Vocabulary entries kept at every answer position, K.
        temperature: Softens the first-step distribution before it is scored; 1 is the paper.
        pooling: Side of the square neighbourhood on the image plane over which patch saliency
            is averaged (`patch` only); 1 is none.
        threshold: Least score that is masked, in the ranker's own unit (nats for `occlusion` and
            `leave-one-out`); with it the ratio is the most that is masked. 0 masks the ratio.
        seed: Seed of the probes and of the random ranker.
    """

    level: Level = "patch"
    ratio: float = 0.2
    ranker: RankerName = "fisher"
    probes: int = 6
    top_k: int = 5
    temperature: float = 1.0
    pooling: int = 3
    threshold: float = 0.0
    seed: int = 1234

    def __post_init__(self) -> None:
        for name in ("probes", "top_k", "pooling", "seed"):
            require_whole(getattr(self, name), name)
        require_seed(self.seed)
        if self.level not in get_args(Level):
            raise InvalidSetting(
                f"level must be one of {', '.join(get_args(Level))}.", param="level"
            )
        if self.ranker not in get_args(RankerName):
            raise InvalidSetting(
                f"ranker must be one of {', '.join(get_args(RankerName))}.", param="ranker"
            )
        if self.ranker == "occlusion" and self.level != "patch":
            raise InvalidSetting("ranker occlusion needs level patch.", param="ranker")
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
