"""Overlapping windows over an image plane, and the visual tokens that they touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isqrt, sqrt

import torch
from torch import Tensor

from purifier.defense.config import N_WINDOWS
from purifier.defense.plane import overlaps, token_rasters
from purifier.mdlm.base import TokenGrid

WINDOWS_PER_SIDE = isqrt(N_WINDOWS)
"""Windows, and blocks, along each side of an image plane; fewer where it has fewer cells."""

WINDOW_SHARE = 0.1
"""Share of an image plane that a window takes at most: the default mask ratio."""

_SLIVER = 1e-9
"""Fraction of the image below which an overlap is rounding: edges of cells and tokens coincide."""


@dataclass(frozen=True)
class Regions:
    """The windows of one image, as what can be masked and as what the model sees of them.

    Attributes:
        units: bool [n, *shape] of the image's units.
        tokens: bool [n, T], the visual tokens that each window touches.
    """

    units: Tensor
    tokens: Tensor


def windows(shape: Sequence[int]) -> Tensor:
    """Overlapping windows over an image plane of rows x columns cells, bool [n, rows, columns].

    Every region up to `covered_cells` wide lies inside one of them (R-covering masks, as in
    PatchCleanser, arXiv 2108.09135). On a plane of more than six cells a side each takes at most
    `WINDOW_SHARE` of it.
    """
    rows, columns = (torch.stack(_intervals(cells)) for cells in shape)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def blocks(shape: Sequence[int]) -> Tensor:
    """A partition of an image plane into `WINDOWS_PER_SIDE` blocks a side, bool [n, rows, columns].

    Fewer where the plane has fewer cells.
    """
    sides = []
    for cells in shape:
        number = torch.arange(cells) * min(WINDOWS_PER_SIDE, cells) // cells
        sides.append(number == torch.arange(int(number[-1]) + 1)[:, None])
    rows, columns = sides
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def borders(shape: Sequence[int]) -> list[Tensor]:
    """The outermost cells of an image plane, and the outermost two: bool [rows, columns] each."""
    result = []
    for width in (1, 2):
        if min(shape) > 2 * width:
            border = torch.ones(tuple(shape), dtype=torch.bool)
            border[width:-width, width:-width] = False
            result.append(border)
    return result


def covered_cells(cells: int) -> int:
    """Longest run of cells that surely lies inside one window, on a side of `cells` cells."""
    width, stride = _width_and_stride(cells)
    return width - stride + 1


def touched_tokens(cells: Tensor, grids: Sequence[TokenGrid]) -> Tensor:
    """The visual tokens that share an area with chosen cells of the image plane.

    Args:
        cells: bool [n, rows, columns].
        grids: The image's token grids; their newline tokens are never touched.

    Returns:
        bool [n, T].
    """
    shape = (cells.shape[1], cells.shape[2])
    touched = torch.zeros(len(cells), sum(grid.length for grid in grids), dtype=torch.bool)
    rasters = iter(token_rasters(grids))
    for grid in grids:
        if not grid.columns:
            continue
        vertical, horizontal = overlaps(next(rasters), shape)
        area = (vertical > _SLIVER).double().T @ cells.double() @ (horizontal > _SLIVER).double()
        hit = torch.nn.functional.pad(area > 0, (0, int(grid.newline)), value=False)
        touched[:, grid.offset : grid.offset + grid.length] = hit.flatten(1)
    return touched


def _intervals(cells: int) -> list[Tensor]:
    """The windows along one side; the last one ends with it, the first may begin before it."""
    width, stride = _width_and_stride(cells)
    place = torch.arange(cells)
    starts = [cells - width - stride * number for number in reversed(range(WINDOWS_PER_SIDE))]
    return [(place >= at) & (place < at + width) for at in starts if at + width > 0]


def _width_and_stride(cells: int) -> tuple[int, int]:
    width = max(floor(cells * sqrt(WINDOW_SHARE)), ceil(cells / WINDOWS_PER_SIDE))
    return width, max(1, ceil((cells - width) / (WINDOWS_PER_SIDE - 1)))
