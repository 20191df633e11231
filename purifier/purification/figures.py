"""What purification did to the labels of a set whose clean labels are known.

| figure | share of | that |
|---|---|---|
| `relabelled`, `dropped` | all samples | have a new answer; are left out |
| `target_before`, `target_after` | all; kept samples | have the attacker's keyword in an answer |
| `agreement` | kept samples | have exactly the clean answers |
| `agreement_poisoned`, `agreement_clean` | the same, of samples with an attacked; a clean label | |
| `flag_precision` | flagged samples | had an attacked label |
| `flag_recall` | samples with an attacked label | were flagged |

A label is attacked if it differs from the clean one; texts are compared up to white space at
their ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from purifier.data.sample import Sample
from purifier.evaluation.intervals import Rate, wilson
from purifier.lab.targets import Target, exact_hit, keyword_hit
from purifier.purification.row import PurifiedRow


@dataclass(frozen=True)
class PolicyFigures:
    """The figures of the module's table; those of flags have no case where none was asked."""

    relabelled: Rate
    dropped: Rate
    target_before: Rate
    target_after: Rate
    agreement: Rate
    agreement_poisoned: Rate
    agreement_clean: Rate
    flag_precision: Rate
    flag_recall: Rate

    def to_dict(self) -> dict[str, dict[str, float | int | None]]:
        return {field.name: getattr(self, field.name).to_dict() for field in fields(self)}


class _Case(NamedTuple):
    row: PurifiedRow
    old: tuple[str, ...]
    new: tuple[str, ...]
    attacked: bool
    agrees: bool


def policy_figures(
    samples: Sequence[Sample],
    rows: Sequence[PurifiedRow],
    clean: Sequence[Sample],
    target: Target,
) -> PolicyFigures:
    """Counts.

    Args:
        samples: The samples as they were given.
        rows: What became of them, in the same order.
        clean: The same samples with their clean labels.
        target: What the attack makes the model say.
    """
    cases = [_case(*each) for each in zip(samples, rows, clean, strict=True)]
    kept = [case for case in cases if not case.row.dropped]
    judged = [case for case in cases if case.row.flagged is not None]
    return PolicyFigures(
        relabelled=_share(case.row.answers is not None for case in cases),
        dropped=_share(case.row.dropped for case in cases),
        target_before=_share(_hit(case.old, target) for case in cases),
        target_after=_share(_hit(case.new, target) for case in kept),
        agreement=_share(case.agrees for case in kept),
        agreement_poisoned=_share(case.agrees for case in kept if case.attacked),
        agreement_clean=_share(case.agrees for case in kept if not case.attacked),
        flag_precision=_share(case.attacked for case in judged if case.row.flagged),
        flag_recall=_share(bool(case.row.flagged) for case in judged if case.attacked),
    )


def _case(sample: Sample, row: PurifiedRow, clean: Sample) -> _Case:
    new = sample.answers if row.answers is None else row.answers
    return _Case(
        row,
        sample.answers,
        new,
        attacked=not _same(sample.answers, clean.answers),
        agrees=_same(new, clean.answers),
    )


def _same(left: Sequence[str], right: Sequence[str]) -> bool:
    return len(left) == len(right) and all(map(exact_hit, left, right))


def _hit(answers: Sequence[str], target: Target) -> bool:
    return any(keyword_hit(answer, target.keywords) for answer in answers)


def _share(hits: Iterable[bool]) -> Rate:
    outcomes = list(hits)
    return wilson(sum(outcomes), len(outcomes))
