"""The picture of saliency and mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from purifier.defense.overlay import GAP, OUTLINE, SHORTEST_SIDE, draw_overlay
from purifier.defense.plane import MaskedPlane
from tests.defense.conftest import picture


def plane_with(row: int, column: int) -> MaskedPlane:
    generator = torch.Generator().manual_seed(0)
    saliency, masked = torch.rand(4, 5, generator=generator) * 0.1, torch.zeros(4, 5)
    saliency[row, column] = 1.0
    masked[row, column] = 1.0
    return MaskedPlane(saliency, masked)


def test_shows_the_image_and_outlines_the_masked_cell() -> None:
    image = picture(50, 40)
    drawn = draw_overlay(image, plane_with(1, 2), scale=4)
    assert drawn.size == (2 * 200 + GAP, 160)
    pixels = np.asarray(drawn)
    enlarged = np.asarray(image).repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(pixels[:, :200], enlarged)
    rows, columns = np.nonzero((pixels[:, 200 + GAP :] == OUTLINE).all(-1))
    assert abs(rows.min() - 40) <= 2
    assert abs(rows.max() - 80) <= 2
    assert abs(columns.min() - 80) <= 2
    assert abs(columns.max() - 120) <= 2


def test_heat_is_brightest_where_saliency_is_highest() -> None:
    drawn = np.asarray(draw_overlay(picture(50, 40), plane_with(3, 0), scale=4).convert("L"))
    heat = drawn[:, 200 + GAP :].astype(float)
    cells = heat.reshape(4, 40, 5, 40)[:, 8:32, :, 8:32].mean((1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (3, 0)


@pytest.mark.parametrize("size", [(3, 4), (64, 64), (640, 480)])
def test_small_images_are_enlarged(size: tuple[int, int]) -> None:
    drawn = draw_overlay(picture(*size), plane_with(0, 0))
    assert drawn.height >= SHORTEST_SIDE
    assert (drawn.width - GAP) // 2 % size[0] == 0


def test_nothing_salient_and_nothing_masked() -> None:
    drawn = np.asarray(
        draw_overlay(picture(8, 8), MaskedPlane(torch.zeros(2, 2), torch.zeros(2, 2)))
    )
    assert not (drawn == OUTLINE).all(-1).any()
