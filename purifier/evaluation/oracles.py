"""Defences that know where the trigger lies: they tell a leak from a bad ranking.

If masking exactly the trigger's tokens after the encoder leaves the attack alive, no ranker
can save masking there. If filling exactly its pixels ends it, the evidence was in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifier.defense.fill import fill_colour
from purifier.lab.triggers import PixelBox
from purifier.mdlm.base import Box, ImageInput, TokenGrid

OracleName = Literal["oracle-token", "oracle-pixel"]

_TOUCH = 1e-9


def trigger_tokens(image: ImageInput, regions: Sequence[PixelBox]) -> Tensor:
    """The visual tokens of one image, in every view, whose cell overlaps one of some regions.

    Args:
        image: The processed image.
        regions: Pixels of the image before it was processed.

    Returns:
        bool [n_tokens]; newline tokens cover no part of the image and are never chosen.
    """
    width, height = image.image.size
    chosen = torch.zeros(image.n_tokens, dtype=torch.bool)
    for left, top, right, bottom in regions:
        box = Box(left / width, top / height, right / width, bottom / height)
        for grid in image.grids:
            if grid.columns:
                chosen[grid.offset : grid.offset + grid.length] |= _overlap(grid, box).flatten()
    return chosen


def fill_regions(image: Image.Image, regions: Sequence[PixelBox]) -> Image.Image:
    """A copy with the pixels of some regions filled as the defence fills cells."""
    pixels = np.array(image.convert("RGB"))
    colour = fill_colour(image)
    for left, top, right, bottom in regions:
        pixels[top:bottom, left:right] = colour
    return Image.fromarray(pixels)


def _overlap(grid: TokenGrid, box: Box) -> Tensor:
    """Whether each cell of a grid shares an area with a box: bool [rows, columns (+ 1)]."""
    rows = _hits(grid.rows, grid.box.top, grid.box.bottom, box.top, box.bottom)
    columns = _hits(grid.columns, grid.box.left, grid.box.right, box.left, box.right)
    cells = rows[:, None] & columns[None, :]
    return torch.nn.functional.pad(cells, (0, int(grid.newline)), value=False)


def _hits(cells: int, start: float, stop: float, low: float, high: float) -> Tensor:
    edges = start + (stop - start) * torch.arange(cells + 1, dtype=torch.float64) / cells
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)) > _TOUCH
