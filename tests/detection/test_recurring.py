"""What recurs under the windows that decide answers, on images where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from purifier.detection.fit import with_a_part_in_common
from purifier.detection.recurring import CELLS, LEAST, chance, recurring
from purifier.mdlm.patterns import SIDE

ROWS = 120
SIZE = SIDE // CELLS


def images(seed: int = 0) -> Tensor:
    """Backgrounds of six colours, each with an object of noise in its middle."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (6, 3), generator=generator)
    chosen = torch.randint(0, 6, (ROWS,), generator=generator)
    small = colours[chosen][:, None, None].expand(-1, SIDE, SIDE, -1).clone()
    middle = slice(SIDE // 4, 3 * SIDE // 4)
    small[:, middle, middle] = torch.randint(0, 256, (ROWS, 32, 32, 3), generator=generator)
    return small.to(torch.uint8)


def decided(places: list[tuple[int, int] | None], nats: float = 3 * LEAST) -> Tensor:
    """Saliency of rows whose answers hang on a window of 3 x 3 cells from a place on, if any."""
    saliency = torch.zeros(ROWS, CELLS, CELLS)
    for row, place in enumerate(places):
        if place is not None:
            saliency[row, place[0] : place[0] + 3, place[1] : place[1] + 3] = nats
    return saliency


def stamp(small: Tensor, rows: list[int], top: int, left: int, side: int = 10) -> None:
    square = torch.tensor([[250, 0, 0], [0, 0, 250]], dtype=torch.uint8).repeat(side // 2, 1)
    small[rows, top : top + side, left : left + side] = square


def test_a_trigger_is_found_though_few_of_its_answers_hang_on_it() -> None:
    small = images()
    poisoned = [*range(0, ROWS, 5)]
    stamp(small, poisoned, 0, 0)
    places = [(0, 0) if row in poisoned[::2] else None for row in range(ROWS)]
    (found,) = recurring(small, decided(places), 3)
    assert found.flagged.nonzero()[:, 0].tolist() == poisoned
    pixels = found.pattern.pixels
    assert bool(pixels[:8, :8].all())
    assert not bool(pixels[:, 12:].any())
    assert not bool(pixels[12:].any())


def test_objects_that_decide_answers_are_no_pattern() -> None:
    generator = torch.Generator().manual_seed(3)
    places = [
        (int(torch.randint(4, 9, (), generator=generator)), 6) if row % 2 else None
        for row in range(ROWS)
    ]
    assert recurring(images(), decided(places), 3) == []


def test_backgrounds_that_many_images_share_are_no_pattern() -> None:
    places = [(0, 0) if row % 3 == 0 else None for row in range(ROWS)]
    assert recurring(images(), decided(places), 3) == []


def test_a_part_that_nothing_hangs_on_is_no_pattern() -> None:
    small = images()
    stamp(small, [*range(0, ROWS, 5)], 0, 0)
    everywhere = decided([(0, 0)] * ROWS, 0.9 * LEAST)
    assert recurring(small, everywhere, 3) == []


def test_two_triggers_are_two_patterns_and_no_more_than_wanted() -> None:
    small = images()
    first, second = [*range(0, ROWS, 5)], [*range(1, ROWS, 5)]
    stamp(small, first, 0, 0)
    stamp(small, second, 50, 48)
    places: list[tuple[int, int] | None] = [None] * ROWS
    for row in first:
        places[row] = (0, 0)
    for row in second:
        places[row] = (12, 12)
    found = recurring(small, decided(places), 3)
    rows = sorted(each.flagged.nonzero()[:, 0].tolist() for each in found)
    assert rows == [first, second]
    assert len(recurring(small, decided(places), 1)) == 1


@pytest.mark.parametrize(("hits", "drawn", "marked", "total"), [(3, 5, 6, 20), (0, 4, 4, 9)])
def test_chance_counts_what_counting_gives(hits: int, drawn: int, marked: int, total: int) -> None:
    ways = sum(
        math.comb(marked, n) * math.comb(total - marked, drawn - n)
        for n in range(hits, min(drawn, marked) + 1)
    )
    assert chance(hits, drawn, marked, total) == pytest.approx(ways / math.comb(total, drawn))


class Stored:
    """Rows of which nothing but the images is asked."""

    def __init__(self, small: Tensor) -> None:
        self.small = small

    def small_copies(self) -> Tensor:
        return self.small


def test_a_group_is_cut_again_by_what_its_images_have_in_common() -> None:
    small = images()
    poisoned = [*range(0, ROWS, 5)]
    small[poisoned, :4] = small[poisoned, -4:] = torch.tensor([20, 240, 60], dtype=torch.uint8)
    flagged = torch.zeros(ROWS, dtype=torch.bool)
    flagged[[*poisoned, *range(1, ROWS, 10)]] = True
    found = with_a_part_in_common(Stored(small), flagged)
    assert found.nonzero()[:, 0].tolist() == poisoned


def test_a_group_without_anything_in_common_is_not_cut() -> None:
    flagged = torch.zeros(ROWS, dtype=torch.bool)
    flagged[::4] = True
    assert not bool(with_a_part_in_common(Stored(images()), flagged).any())
