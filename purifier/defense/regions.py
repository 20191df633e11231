"""Where on an image something is masked, as rectangles for people and programs."""

from __future__ import annotations

from torch import Tensor

from purifier.mdlm.base import Box

MASKED_FROM = 0.5
"""Masked share from which a cell counts."""


def masked_boxes(masked: Tensor) -> list[Box]:
    """The rectangles around connected masked cells, largest first.

    Args:
        masked: [rows, columns], the masked share of every cell, 0 to 1.

    Returns:
        In fractions of the image's width and height. Cells that touch at a corner alone are
        apart.
    """
    rows, columns = masked.shape
    left = {(row, column) for row, column in (masked >= MASKED_FROM).nonzero().tolist()}
    found = []
    while left:
        part = _connected(left)
        left -= part
        heights, widths = zip(*part, strict=True)
        box = Box(
            min(widths) / columns,
            min(heights) / rows,
            (max(widths) + 1) / columns,
            (max(heights) + 1) / rows,
        )
        found.append((len(part), box))
    found.sort(key=lambda each: (-each[0], each[1].top, each[1].left))
    return [box for _, box in found]


def _connected(cells: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """All cells that a first one is connected with by sides."""
    seen: set[tuple[int, int]] = set()
    edge = [min(cells)]
    while edge:
        row, column = edge.pop()
        if (row, column) in seen or (row, column) not in cells:
            continue
        seen.add((row, column))
        edge += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return seen
