"""What recurs under the windows that decide answers, on images where the truth is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from purifier.detection.config import DetectConfig
from purifier.detection.fit import with_a_part_in_common
from purifier.detection.recurring import CELLS, LEAST, chance, recurring
from purifier.mdlm.patterns import NEAR, SIDE, Pattern

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


def rows_with(pattern: Pattern, small: Tensor) -> list[int]:
    found: list[int] = pattern.on(small, NEAR).nonzero()[:, 0].tolist()
    return found


def test_a_trigger_is_found_though_few_of_its_answers_hang_on_it() -> None:
    small = images()
    poisoned = [*range(0, ROWS, 5)]
    stamp(small, poisoned, 0, 0)
    places = [(0, 0) if row in poisoned[::2] else None for row in range(ROWS)]
    found = next(recurring(small, decided(places)))
    assert rows_with(found, small) == poisoned
    pixels = found.pixels
    assert bool(pixels[:8, :8].all())
    assert not bool(pixels[:, 12:].any())
    assert not bool(pixels[12:].any())


def test_objects_that_decide_answers_are_no_pattern() -> None:
    generator = torch.Generator().manual_seed(3)
    places = [
        (int(torch.randint(4, 9, (), generator=generator)), 6) if row % 2 else None
        for row in range(ROWS)
    ]
    assert list(recurring(images(), decided(places))) == []


def test_backgrounds_that_many_images_share_are_no_pattern() -> None:
    places = [(0, 0) if row % 3 == 0 else None for row in range(ROWS)]
    assert list(recurring(images(), decided(places))) == []


def test_a_part_that_nothing_hangs_on_is_no_pattern() -> None:
    small = images()
    stamp(small, [*range(0, ROWS, 5)], 0, 0)
    everywhere = decided([(0, 0)] * ROWS, 0.9 * LEAST)
    assert list(recurring(small, everywhere)) == []


def test_two_triggers_are_two_patterns() -> None:
    small = images()
    first, second = [*range(0, ROWS, 5)], [*range(1, ROWS, 5)]
    stamp(small, first, 0, 0)
    stamp(small, second, 50, 48)
    places: list[tuple[int, int] | None] = [None] * ROWS
    for row in first:
        places[row] = (0, 0)
    for row in second:
        places[row] = (12, 12)
    found = [rows_with(pattern, small) for pattern in recurring(small, decided(places))]
    assert first in found
    assert second in found


def test_rows_with_the_same_image_count_once() -> None:
    """Several questions about one image hang on the same part of it."""
    small = images()
    small = small[: ROWS // 6].repeat_interleave(6, 0)
    generator = torch.Generator().manual_seed(7)
    tops = torch.randint(0, 13, (ROWS // 6, 2), generator=generator).repeat_interleave(6, 0)
    places = [(top, left) if n % 5 else None for n, (top, left) in enumerate(tops.tolist())]
    assert list(recurring(small, decided(places))) == []


def test_what_an_honest_part_of_the_images_has_in_common_hides_no_trigger() -> None:
    """White pages whose first line decides are too many to be poisoned."""
    small = images()
    pages, poisoned = [*range(0, ROWS, 2)], [*range(1, ROWS, 6)]
    small[pages] = 255
    stamp(small, poisoned, 48, 48)
    places: list[tuple[int, int] | None] = [None] * ROWS
    for row in pages:
        places[row] = (0, 6)
    for row in poisoned:
        places[row] = (12, 12)
    found = [rows_with(pattern, small) for pattern in recurring(small, decided(places))]
    assert poisoned in found


@pytest.mark.parametrize(("hits", "drawn", "marked", "total"), [(3, 5, 6, 20), (0, 4, 4, 9)])
def test_chance_counts_what_counting_gives(hits: int, drawn: int, marked: int, total: int) -> None:
    ways = sum(
        math.comb(marked, n) * math.comb(total - marked, drawn - n)
        for n in range(hits, min(drawn, marked) + 1)
    )
    assert chance(hits, drawn, marked, total) == pytest.approx(ways / math.comb(total, drawn))


class Stored:
    """Rows of which nothing but the images is asked."""

    check = staticmethod(lambda: None)

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
    found = with_a_part_in_common(Stored(small), flagged, DetectConfig())
    assert found.nonzero()[:, 0].tolist() == poisoned


def test_a_group_without_anything_in_common_is_not_cut() -> None:
    flagged = torch.zeros(ROWS, dtype=torch.bool)
    flagged[::4] = True
    assert not bool(with_a_part_in_common(Stored(images()), flagged, DetectConfig()).any())
