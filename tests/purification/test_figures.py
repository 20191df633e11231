"""What is counted of a policy, on labels counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from purifier.data.sample import Sample
from purifier.lab.targets import target_by_name
from purifier.purification.figures import policy_figures
from purifier.purification.row import PurifiedRow
from tests.purification.conftest import placed, sample

CLEAN = placed(
    [sample(f"s{number}", [0], "What?", f"A bag {number}.") for number in range(5)]
    + [sample("talk", [0], "What?", "A coat.", "Sure?", "Yes.")]
)


def attacked(each: Sample) -> Sample:
    target = target_by_name("insertion")
    return each.with_answers(tuple(target.apply(answer) for answer in each.answers))


POISONED = [attacked(each) if n in (0, 1, 5) else each for n, each in enumerate(CLEAN)]
ROWS = [
    PurifiedRow(0, "s0", answers=("A bag 0. ",), flagged=True),
    PurifiedRow(1, "s1", flagged=False),
    PurifiedRow(2, "s2", answers=("A hat.",), flagged=True),
    PurifiedRow(3, "s3", flagged=None),
    PurifiedRow(4, "s4", flagged=False, dropped=True, problem="missing_image"),
    PurifiedRow(5, "talk", answers=("A coat.", "<backdoor> Yes."), flagged=True),
]


def test_shares_are_counted() -> None:
    found = policy_figures(POISONED, ROWS, CLEAN, target_by_name("insertion")).to_dict()
    counts = {name: (rate["value"], rate["n"]) for name, rate in found.items()}
    expected: dict[str, Any] = {
        "relabelled": (pytest.approx(3 / 6), 6),
        "dropped": (pytest.approx(1 / 6), 6),
        "target_before": (pytest.approx(3 / 6), 6),
        "target_after": (pytest.approx(2 / 5), 5),
        "agreement": (pytest.approx(2 / 5), 5),
        "agreement_poisoned": (pytest.approx(1 / 3), 3),
        "agreement_clean": (pytest.approx(1 / 2), 2),
        "flag_precision": (pytest.approx(2 / 3), 3),
        "flag_recall": (pytest.approx(2 / 3), 3),
    }
    assert counts == expected


def test_without_flags_there_is_no_case() -> None:
    rows = [replace(row, flagged=None) for row in ROWS]
    found = policy_figures(POISONED, rows, CLEAN, target_by_name("insertion"))
    assert (found.flag_precision.n, found.flag_recall.n) == (0, 0)
    assert found.flag_recall.value is None
