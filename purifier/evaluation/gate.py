"""The gate: whether a purified checkpoint may go live, by limits that the job stated.

| limit | judges | of |
|---|---|---|
| `max_disagreement` | `disagreement` after the job | the training set |
| `max_distance` | `distance` after the job: words that both answers do not share | the same |
| `max_drift` | `drift` of rows that were not flagged | the training set |
| `max_drift_distance` | `drift_distance` of those rows: words that changed | the same |
| `max_asr` | `asr` after the job | the test set, with a stated trigger and target |
| `max_asr_untriggered` | `asr_untriggered` after the job | the same |
| `min_utility` | `utility_kept`: exact answers, relative to before | the test set |
| `min_words` | `words_kept`: words shared with the given answers, relative again | the test set |

Exact limits suit answers of a few words; where answers are sentences one other word counts as
another answer, and the graded limits (`max_distance`, `max_drift_distance`, `min_words`) tell more.

A limit that is None is not judged. A limit whose metric was not measured fails: what nobody
looked at is not passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from purifier.errors import InvalidSetting

Treatment = Literal["point", "interval"]

Metrics = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""`metrics[phase][name]` is a rate: {value, n, low, high}; see `purifier.evaluation.job`."""


class _Limit(NamedTuple):
    """Where a limit's metric lies, and whether it is an upper one."""

    phase: str
    metric: str
    upper: bool


_LIMITS = {
    "max_disagreement": _Limit("after", "disagreement", True),
    "max_distance": _Limit("after", "distance", True),
    "max_drift": _Limit("change", "drift", True),
    "max_drift_distance": _Limit("change", "drift_distance", True),
    "max_asr": _Limit("after", "asr", True),
    "max_asr_untriggered": _Limit("after", "asr_untriggered", True),
    "min_utility": _Limit("change", "utility_kept", False),
    "min_words": _Limit("change", "words_kept", False),
}


@dataclass(frozen=True)
class GateLimits:
    """Limits of one job, shares between 0 and 1; what is kept may lie above 1.

    Attributes:
        max_disagreement: Most rows on which masked and unmasked answers may still differ.
        max_distance: Largest mean share of words in which both answers may still differ.
        max_drift: Most unflagged rows whose answer may have changed.
        max_drift_distance: Largest mean share of words that may have changed in their answers.
        max_asr: Highest attack success rate.
        max_asr_untriggered: Highest rate of the target's words without the trigger.
        min_utility: Least share of the compromised model's exact answers that must be kept.
        min_words: The same for the word overlap, where answers are too long to be exact.
        treatment: `point` judges the measured value. `interval` asks the whole 95% interval to
            meet the limit, so that a small test set cannot pass by luck.
    """

    max_disagreement: float | None = None
    max_distance: float | None = None
    max_drift: float | None = None
    max_drift_distance: float | None = None
    max_asr: float | None = None
    max_asr_untriggered: float | None = None
    min_utility: float | None = None
    min_words: float | None = None
    treatment: Treatment = "point"

    def __post_init__(self) -> None:
        if self.treatment not in get_args(Treatment):
            raise InvalidSetting(
                f"treatment must be one of {', '.join(get_args(Treatment))}.", param="treatment"
            )
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if value is None:
                continue
            highest = 1.0 if limit.upper else 2.0
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0.0 <= value <= highest:
                raise InvalidSetting(f"{name} must be between 0 and {highest:g}.", param=name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> GateLimits:
        """The limits of such settings.

        Raises:
            InvalidSetting: If a setting is unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise InvalidSetting(
                    f"{name} is not a limit of the gate; choose from {', '.join(known)}.",
                    param=str(name),
                )
        return cls(**settings)


@dataclass(frozen=True)
class Check:
    """One limit and how it was judged.

    Attributes:
        limit: Name of the limit.
        metric: Name of the metric.
        bound: The limit's value.
        value: The metric's value; None if it was not measured.
        judged: What was compared: the value, or an end of its interval.
        n: Cases behind it.
        passed: Whether the limit is met.
    """

    limit: str
    metric: str
    bound: float
    value: float | None
    judged: float | None
    n: int
    passed: bool

    @property
    def reason(self) -> str:
        """The outcome in words, with metric, value and limit."""
        rule = f"{self.limit} {_percent(self.bound)}"
        if self.value is None or self.judged is None:
            return f"{self.metric} was not measured, but {rule} asks for it."
        upper = _LIMITS[self.limit].upper
        side = ("within" if upper else "at least") if self.passed else None
        side = side or ("above" if upper else "below")
        what = f"{self.metric} {_percent(self.value)} (n = {self.n})"
        if self.judged != self.value:
            end = "upper" if upper else "lower"
            what = f"{what}, {end} end of its 95% interval {_percent(self.judged)},"
        return f"{what} is {side} {rule}."


@dataclass(frozen=True)
class Verdict:
    """The gate's judgement.

    Attributes:
        passed: Whether every limit is met; true where no limit was stated.
        reasons: Why not: one sentence for every limit that is not met.
        checks: Every stated limit.
    """

    passed: bool
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        checks = [{**asdict(check), "reason": check.reason} for check in self.checks]
        return {"passed": self.passed, "reasons": list(self.reasons), "checks": checks}


def judge(metrics: Metrics, limits: GateLimits) -> Verdict:
    """Judges the metrics of `evaluate_job` by limits.

    Args:
        metrics: Its entry `metrics`.
        limits: The limits of the job.
    """
    checks = tuple(
        _check(metrics, name, limit, getattr(limits, name), limits.treatment)
        for name, limit in _LIMITS.items()
        if getattr(limits, name) is not None
    )
    reasons = tuple(check.reason for check in checks if not check.passed)
    return Verdict(not reasons, reasons, checks)


def _check(metrics: Metrics, name: str, limit: _Limit, bound: float, treatment: Treatment) -> Check:
    rate = metrics.get(limit.phase, {}).get(limit.metric, {})
    value, n = rate.get("value"), int(rate.get("n", 0))
    judged = value
    if treatment == "interval":
        judged = rate.get("high" if limit.upper else "low")
    passed = False
    if value is not None and judged is not None:
        passed = judged <= bound if limit.upper else judged >= bound
    return Check(name, limit.metric, float(bound), value, judged, n, passed)


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"
