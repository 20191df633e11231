"""Defences that know where the trigger lies: they tell a leak from a bad ranking.

If masking exactly the trigger's tokens after the encoder leaves the attack alive, no ranker
can save masking there. If filling exactly its pixels ends it, the evidence was in them.
"""

from __future__ import annotations

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


def trigger_tokens(image: ImageInput, region: PixelBox) -> Tensor:
    """The visual tokens of one image, in every view, whose cell overlaps a region.

    Args:
        image: The processed image.
        region: Pixels of the image before it was processed.

    Returns:
        bool [n_tokens]; newline tokens cover no part of the image and are never chosen.
    """
    width, height = image.image.size
    box = Box(
        region.left / width, region.top / height, region.right / width, region.bottom / height
    )
    chosen = torch.zeros(image.n_tokens, dtype=torch.bool)
    for grid in image.grids:
        if grid.columns:
            chosen[grid.offset : grid.offset + grid.length] = _overlap(grid, box).flatten()
    return chosen


def fill_region(image: Image.Image, region: PixelBox) -> Image.Image:
    """A copy with a region's pixels filled as the defence fills cells."""
    pixels = np.array(image.convert("RGB"))
    pixels[region.top : region.bottom, region.left : region.right] = fill_colour(image)
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
