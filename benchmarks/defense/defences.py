"""The defences by name: what answers a test set under each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from benchmarks.defense.detection import detector_settings
from benchmarks.defense.healing import HEALINGS, ModelDefence
from benchmarks.defense.searches import searching
from benchmarks.defense.transforms import TRANSFORMS
from purifier.defense.config import EFFORTS, MaskingConfig, RankerName
from purifier.errors import InvalidSetting
from purifier.evaluation.metrics import Answers
from purifier.evaluation.oracles import OracleName
from purifier.evaluation.runner import Cut, Runner


class Defence(Protocol):
    """Something that stands between an attacked question and its answer."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its answers, JSON-ready."""

    def answers(self, runner: Runner) -> Answers | None:
        """Answers to a test set; None where the defence has nothing to work on."""


@dataclass(frozen=True)
class Undefended:
    """Nothing."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def answers(self, runner: Runner) -> Answers:
        return runner.undefended()


@dataclass(frozen=True)
class Masked:
    """Masking by a saliency."""

    masking: MaskingConfig

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**asdict(self.masking), **searching(self.masking)}

    def answers(self, runner: Runner) -> Answers:
        cut = Cut(self.masking.ratio, self.masking.threshold)
        return runner.masked(self.masking, [cut])[cut]


@dataclass(frozen=True)
class Detected:
    """Masking as a server does it, with the detector that the training set shows."""

    masking: MaskingConfig

    @property
    def settings(self) -> Mapping[str, Any]:
        masking = {**asdict(self.masking), **searching(self.masking)}
        return {**masking, "detector": detector_settings()}

    def answers(self, runner: Runner) -> Answers:
        return runner.defended(self.masking)


@dataclass(frozen=True)
class Transformed:
    """The image changed in a way that has nothing to do with triggers."""

    name: str
    seed: int = 0

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"transform": self.name, "seed": self.seed}

    def answers(self, runner: Runner) -> Answers:
        def change(number: int, image: Image.Image) -> Image.Image:
            rng = np.random.default_rng([self.seed, number])
            return TRANSFORMS[self.name](image, rng)

        return runner.transformed(change)


@dataclass(frozen=True)
class Oracle:
    """Knows where the trigger lies."""

    name: OracleName

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"oracle": self.name}

    def answers(self, runner: Runner) -> Answers | None:
        try:
            return runner.oracle(self.name)
        except InvalidSetting:
            return None


RANKERS: tuple[RankerName, ...] = ("official", "fisher", "occlusion", "knockout", "attention")
"""Those measured at the level and the ratio of `fast`."""

DEFENCES: Mapping[str, Defence | ModelDefence] = {
    "none": Undefended(),
    **{
        f"paper {ratio:g}": Masked(
            MaskingConfig(level="token", ranker="official", ratio=ratio, scored_length=1)
        )
        for ratio in (0.15, 0.3, 0.45)
    },
    "random drop 0.3": Masked(MaskingConfig(level="token", ranker="random", ratio=0.3)),
    "random windows 0.3": Masked(MaskingConfig(level="patch", ranker="random", ratio=0.3)),
    **{effort: Masked(MaskingConfig().adjusted(effort=effort)) for effort in EFFORTS},
    "fast, detector": Detected(MaskingConfig().adjusted(effort="fast")),
    "balanced, detector": Detected(MaskingConfig().adjusted(effort="balanced")),
    **{
        f"{ranker} {MaskingConfig().ratio:g}": Masked(MaskingConfig(level="patch", ranker=ranker))
        for ranker in RANKERS
    },
    **{name: Transformed(name) for name in TRANSFORMS},
    "oracle, tokens": Oracle("oracle-token"),
    "oracle, pixels": Oracle("oracle-pixel"),
    **HEALINGS,
}
"""Those at inference, then those of the model."""
