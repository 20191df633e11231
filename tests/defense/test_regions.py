"""Rectangles around what is masked."""

from __future__ import annotations

import torch

from purifier.defense.regions import masked_boxes
from purifier.mdlm.base import Box


def plane(*rows: str) -> torch.Tensor:
    return torch.tensor([[{"#": 1.0, "+": 0.5, "-": 0.4, ".": 0.0}[c] for c in r] for r in rows])


def test_nothing_masked_is_no_rectangle() -> None:
    assert masked_boxes(plane("....", "-...")) == []


def test_connected_cells_are_one_rectangle_and_the_largest_comes_first() -> None:
    found = masked_boxes(plane("#...", "...+", "..##", "...."))
    assert found == [Box(0.5, 0.25, 1.0, 0.75), Box(0.0, 0.0, 0.25, 0.25)]


def test_cells_that_touch_at_a_corner_are_apart() -> None:
    found = masked_boxes(plane("#.", ".#"))
    assert found == [Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)]


def test_a_frame_is_one_rectangle() -> None:
    assert masked_boxes(plane("####", "#..#", "####")) == [Box(0.0, 0.0, 1.0, 1.0)]
