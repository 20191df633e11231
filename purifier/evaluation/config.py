"""Settings of a job's evaluation, as a job request states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from purifier.errors import InvalidSetting
from purifier.evaluation.utility import Attack
from purifier.lab.targets import TargetName, target_by_name
from purifier.lab.triggers import trigger_from_dict
from purifier.settings import require_seed, require_whole


@dataclass(frozen=True)
class EvaluationConfig:
    """What a job measures before and after.

    Attributes:
        rows: Training rows with images that are drawn for disagreement and drift.
        test_rows: Test rows drawn at most; None takes all.
        trigger: Settings of the trigger whose success is measured on the test set, with its
            `name`; see `purifier.lab.triggers`. None measures no attack.
        target: What the attack makes the model say: `insertion`, `refusal`, `misclassification`.
        keywords: Words that tell the attack's success; by default the target's. A trigger needs
            a target or keywords.
        examples: Rows shown in the report.
        batch_size: Requests denoised together.
        seed: Seed of the draws.
    """

    rows: int = 100
    test_rows: int | None = None
    trigger: Mapping[str, Any] | None = None
    target: TargetName | None = None
    keywords: tuple[str, ...] = ()
    examples: int = 8
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("test_rows", 1), ("examples", 0), ("batch_size", 1)):
            value = getattr(self, name)
            require_whole(value, name, optional=name == "test_rows")
            if value is not None and value < least:
                raise InvalidSetting(f"{name} must be at least {least}.", param=name)
        require_whole(self.seed, "seed")
        require_seed(self.seed)
        if self.target is not None and self.target not in get_args(TargetName):
            raise InvalidSetting(
                f"target must be one of {', '.join(get_args(TargetName))}.", param="target"
            )
        words = self.keywords
        listed = isinstance(words, list | tuple)
        if not listed or any(not isinstance(w, str) or not w.strip() for w in words):
            raise InvalidSetting("keywords must be a list of non-empty texts.", param="keywords")
        object.__setattr__(self, "keywords", tuple(word.lower() for word in words))
        if self.trigger is None and (self.target or self.keywords):
            raise InvalidSetting(
                "A target is measured with a trigger; state the trigger too.", param="trigger"
            )
        if self.trigger is not None:
            if not isinstance(self.trigger, Mapping):
                raise InvalidSetting("trigger must be an object with a name.", param="trigger")
            trigger_from_dict(self.trigger)
            if not self.target and not self.keywords:
                raise InvalidSetting(
                    "A trigger is measured by what it makes the model say; state a target or "
                    "keywords.",
                    param="target",
                )

    def attack(self) -> Attack | None:
        """The stated attack; None if there is none."""
        if self.trigger is None:
            return None
        target = target_by_name(self.target) if self.target else None
        keywords = self.keywords or (target.keywords if target else ())
        return Attack(trigger_from_dict(self.trigger), keywords, target)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `from_dict` gives the same settings back."""
        trigger = None
        if self.trigger is not None:
            trigger = {k: list(v) if isinstance(v, tuple) else v for k, v in self.trigger.items()}
        return {**asdict(self), "trigger": trigger, "keywords": list(self.keywords)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> EvaluationConfig:
        """The settings of such a mapping; what is left out keeps its default.

        Raises:
            InvalidSetting: If a setting is unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise InvalidSetting(
                    f"{name} is not a setting of the evaluation; choose from {', '.join(known)}.",
                    param=str(name),
                )
        return cls(**settings)
