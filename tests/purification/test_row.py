"""Rows as lines of JSON, and the seeds of answers."""

from __future__ import annotations

import pytest

from purifier import DataError
from purifier.purification.row import PurifiedRow
from purifier.purification.seeds import answer_seed
from tests.purification.conftest import placed, sample


@pytest.mark.parametrize(
    "row",
    [
        PurifiedRow(0, None),
        PurifiedRow(
            3,
            "ü",
            answers=("Ein Hut.\nJa.", "\u2028"),
            flagged=True,
            further=(("What?", "A bag."),),
            side={"mask_ratio": 0.25, "truncated": False},
        ),
        PurifiedRow(4, 17, dropped=True, problem="missing_image"),
    ],
)
def test_a_row_comes_back_from_its_line(row: PurifiedRow) -> None:
    line = row.to_json()
    assert "\n" not in line
    assert PurifiedRow.from_json(line) == row


@pytest.mark.parametrize("line", ["", "{", "[]", "3", "{}", '{"record": 1}'])
def test_a_damaged_line_is_refused(line: str) -> None:
    with pytest.raises(DataError, match="damaged"):
        PurifiedRow.from_json(line)


def test_seeds_depend_on_job_sample_and_question_alone() -> None:
    first, same_file = placed([sample("a", [0], "Q"), sample(None, [0], "Q")])
    elsewhere = placed([sample("b", [1], "P"), sample("a", [0], "Q")])[1]
    assert answer_seed(1, first, 0) == answer_seed(1, elsewhere, 0)
    seeds = {
        answer_seed(1, first, 0),
        answer_seed(1, first, 1),
        answer_seed(2, first, 0),
        answer_seed(1, same_file, 0),
        answer_seed(1, sample(1, [0], "Q"), 0),
        answer_seed(1, sample("1", [0], "Q"), 0),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seeds_of_a_finished_shard_stay() -> None:
    assert answer_seed(7, sample("train-0001", [0], "Q"), 0) == 3841457718335951047


def test_a_sample_without_a_name_has_no_seed() -> None:
    with pytest.raises(DataError, match="id"):
        answer_seed(1, sample(None, [0], "Q"), 0)
