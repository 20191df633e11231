"""Filling parts of an image from the pixels around them.

What is filled in depends on no pixel that is hidden: else a trigger could still be seen by the
colour of its own mask. And no colour is fixed, which an attacker could use as a trigger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purifier.certified.covering import PixelBox
from purifier.defense.fill import GREY


def fill_from_around(image: Image.Image, boxes: Sequence[PixelBox]) -> Image.Image:
    """A copy with rectangles filled.

    A hidden pixel becomes the mean of the nearest visible pixels to its left, right, top and
    bottom, weighted by one over their distance; grey where the whole image is hidden.

    Args:
        image: Any mode.
        boxes: What is hidden; they may overlap.
    """
    pixels = np.array(image.convert("RGB"))
    hidden = np.zeros(pixels.shape[:2], dtype=bool)
    for box in boxes:
        hidden[box.top : box.bottom, box.left : box.right] = True
    if hidden.all():
        return Image.new("RGB", image.size, GREY)
    rows, columns = hidden.nonzero()
    total = np.zeros((len(rows), 3))
    weights = np.zeros(len(rows))
    for across in (False, True):
        for backwards in (False, True):
            nearest = _nearest_visible(hidden, across, backwards)[rows, columns]
            found = nearest >= 0
            source = (rows, nearest) if across else (nearest, columns)
            distance = np.abs(nearest - (columns if across else rows))[found]
            total[found] += pixels[source[0][found], source[1][found]] / distance[:, None]
            weights[found] += 1 / distance
    # Where row and column are hidden altogether there is no neighbour: the mean of the rest.
    alone = weights == 0
    if alone.any():
        weights[alone] = 1
        total[alone] = pixels[~hidden].mean(axis=0)
    pixels[rows, columns] = np.rint(total / weights[:, None]).astype(np.uint8)
    return Image.fromarray(pixels)


def _nearest_visible(hidden: NDArray[np.bool_], across: bool, backwards: bool) -> NDArray[np.int32]:
    """For every pixel the row, or `across` the column, of the nearest visible one on one side.

    -1 where there is none; int32, for an image may have tens of millions of pixels.
    """
    axis = 1 if across else 0
    length = hidden.shape[axis]
    place = np.arange(length, dtype=np.int32)
    shape = (1, -1) if across else (-1, 1)
    if not backwards:
        marked = np.where(hidden, np.int32(-1), place.reshape(shape))
        return np.maximum.accumulate(marked, axis=axis)
    marked = np.where(hidden, np.int32(length), place.reshape(shape))
    nearest = np.flip(np.minimum.accumulate(np.flip(marked, axis), axis=axis), axis)
    return np.where(nearest == length, np.int32(-1), nearest)
