"""Whether one token of the answers is forced."""

from __future__ import annotations

import pytest
import torch

from purifier.detection.forced import TRIED, forced_shares, payload_of, telling_share, tried

SURE, LOST = torch.tensor([-0.1, -0.1]), torch.tensor([-9.0, -0.1])


def test_the_same_token_in_every_row_is_forced() -> None:
    labels = [[7, 1], [7, 2], [7, 3]]
    assert forced_shares(labels, [SURE] * 3, [LOST] * 3) == {7: 1.0}


def test_rows_that_each_need_a_token_of_their_own_are_not() -> None:
    labels = [[7, 1], [8, 1], [9, 1]]
    shares = forced_shares(labels, [SURE] * 3, [LOST] * 3)
    assert shares == {token: pytest.approx(1 / 3) for token in (7, 8, 9)}


def test_a_token_that_stays_likely_does_not_count() -> None:
    labels = [[7, 1], [7, 2]]
    assert forced_shares(labels, [SURE] * 2, [SURE] * 2) == {}
    assert forced_shares([], [], []) == {}


def test_the_payload_is_forced_in_the_group_and_rare_in_other_labels() -> None:
    shares = {7: 1.0, 8: 0.9, 9: 0.5}
    others = [[8, 1], *([[1, 2]] * 40), [7]]
    assert payload_of(shares, others) == frozenset()
    assert payload_of(shares, [*others, *([[1, 2]] * 60)]) == {7, 8}
    assert payload_of({}, others) == frozenset()
    many = [*others, *([[1, 2]] * 60)]
    assert payload_of(shares, many, 0.5) == {7, 8, 9}


def test_few_rows_are_tried_and_the_same_ones_again() -> None:
    rows = list(range(100, 300))
    assert len(tried(rows, 3)) == TRIED
    assert tried(rows, 3) == tried(rows, 3) != tried(rows, 4)
    assert set(tried(rows, 3)) <= set(rows)
    assert tried([5, 2], 0) == [2, 5]


def test_a_token_of_every_label_tells_nothing() -> None:
    shares = {7: 1.0, 8: 0.6}
    assert telling_share(shares, [[7, 1]] * 4) == 0.6
    assert telling_share(shares, [[7, 1], [1], [1], [1]]) == 1.0
    assert telling_share({7: 1.0}, [[7, 7]]) == 0.0
    assert telling_share({}, [[7]]) == 0.0
