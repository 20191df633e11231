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
    total = np.zeros(pixels.shape)
    weights = np.zeros(hidden.shape)
    for axis in (0, 1):
        for backwards in (False, True):
            _add(pixels, hidden, axis, backwards, total, weights)
    # Rows and columns that are hidden altogether have no neighbour: they take the others' mean.
    alone = hidden & (weights == 0)
    weights[alone] = 1
    total[alone] = pixels[~hidden].mean(axis=0)
    filled = np.rint(total[hidden] / weights[hidden][:, None])
    pixels[hidden] = filled.astype(np.uint8)
    return Image.fromarray(pixels)


def _add(
    pixels: NDArray[np.uint8],
    hidden: NDArray[np.bool_],
    axis: int,
    backwards: bool,
    total: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Adds the nearest visible pixel in one direction, weighted, where there is one."""
    step = (slice(None, None, -1),) if backwards else (slice(None),)
    view = step if axis == 0 else (slice(None), *step)
    seen, values = ~hidden[view], pixels[view]
    shape = (-1, 1) if axis == 0 else (1, -1)
    place = np.arange(hidden.shape[axis]).reshape(shape)
    nearest = np.maximum.accumulate(np.where(seen, place, -1), axis=axis)
    found = ~seen & (nearest >= 0)
    rows, columns = found.nonzero()
    distance = (place - nearest)[rows, columns]
    source = nearest[rows, columns]
    chosen = values[source, columns] if axis == 0 else values[rows, source]
    total[view][rows, columns] += chosen / distance[:, None]
    weights[view][rows, columns] += 1 / distance
