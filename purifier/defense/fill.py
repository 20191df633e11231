"""Filling parts of an image before it is tiled and encoded."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

DARKEST_FILL = 32
"""Below this level in every channel a mean counts as black."""

GREY = (128, 128, 128)

Colour = tuple[int, int, int]


def fill_colour(image: Image.Image) -> Colour:
    """The colour that hides parts of an image: its mean, or mid-grey if that is black.

    Black patches are a usual trigger, so a black fill could fire the backdoor itself.
    """
    means = np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1))
    red, green, blue = (round(float(mean)) for mean in means)
    return GREY if max(red, green, blue) < DARKEST_FILL else (red, green, blue)


def filled(image: Image.Image) -> Image.Image:
    """An image of the same size with nothing in it."""
    return Image.new("RGB", image.size, fill_colour(image))


def fill_cells(image: Image.Image, cells: Tensor) -> Image.Image:
    """A copy with the pixels of chosen cells filled.

    Args:
        image: Any mode; at least as many pixels along each side as the plane has cells.
        cells: bool [rows, columns], an even partition of the image plane.
    """
    pixels = np.array(image.convert("RGB"))
    colour = fill_colour(image)
    rows, columns = cells.shape
    top, left = cell_edges(rows, image.height), cell_edges(columns, image.width)
    for row, column in cells.nonzero().tolist():
        pixels[top[row] : top[row + 1], left[column] : left[column + 1]] = colour
    return Image.fromarray(pixels)


def cell_edges(cells: int, length: int) -> list[int]:
    """Pixel edges of an even partition; every pixel belongs to exactly one cell."""
    return [round(index * length / cells) for index in range(cells + 1)]
