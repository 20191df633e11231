"""Two groups among rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from purifier.detection.separate import discriminant, gap, splits, two_means


def rows(n: int = 200, width: int = 24, *, seed: int = 0) -> Tensor:
    """Rows of one kind, wider in some directions than in others."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator) * torch.linspace(2, 0.2, width)


def shifted(values: Tensor, flagged: Tensor, distance: float) -> Tensor:
    """The same with some rows moved along a direction of their own."""
    direction = torch.zeros(values.shape[1])
    direction[5:8] = 1 / 3**0.5
    return values + distance * flagged[:, None] * direction


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_a_group_that_lies_apart_is_found_row_by_row(share: float) -> None:
    flagged = torch.arange(200) < share * 200
    best = splits(shifted(rows(), flagged, 25.0))[0]
    assert torch.equal(best.flagged, flagged)
    assert best.gap > 5


def test_rows_of_one_kind_have_no_wide_gap() -> None:
    assert all(split.gap < 3.5 for split in splits(rows()))


@pytest.mark.parametrize("share", [0.005, 0.5])
def test_a_side_too_small_or_too_large_is_none(share: float) -> None:
    flagged = torch.arange(200) < share * 200
    moved = shifted(rows(), flagged, 80.0)
    assert not any(torch.equal(split.flagged, flagged) for split in splits(moved))


def test_two_means_cut_between_both_and_leave_equal_values_alone() -> None:
    values = torch.tensor([0.0, 0.1, 5.0, 5.2])
    assert two_means(values).tolist() == [False, False, True, True]
    assert not two_means(torch.ones(4)).any()


def test_the_discriminant_turns_away_from_what_varies_anyway() -> None:
    values = rows(400, 2)
    values[:, 0] *= 10
    flagged = torch.arange(400) < 100
    values[flagged] += torch.tensor([1.0, 1.0])
    direction = discriminant(values, flagged, ridge=0.0)
    assert direction[1].abs() > 20 * direction[0].abs()
    along, first = values @ direction, values[:, 0]
    assert gap(along, flagged) > gap(first, flagged)


def test_a_side_of_one_row_has_no_gap() -> None:
    assert gap(torch.arange(4.0), torch.tensor([True, False, False, False])) == 0.0
