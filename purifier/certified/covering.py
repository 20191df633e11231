"""Masks over the pixels of an image of which one hides any window up to a certain size.

As in PatchCleanser (arXiv 2108.09135): along a side of n pixels, k masks of r + s - 1 pixels, one
every s = ceil((n - r + 1) / k) pixels. A window of r pixels that begins at pixel a lies inside mask
floor(a / s), or inside the last one, which ends with the side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil

from purifier.certified.config import CertifyConfig


@dataclass(frozen=True)
class PixelBox:
    """A rectangle of pixels; `right` and `bottom` lie behind it."""

    left: int
    top: int
    right: int
    bottom: int

    def holds(self, other: PixelBox) -> bool:
        """Whether another rectangle lies inside this one."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def covering(size: tuple[int, int], config: CertifyConfig) -> list[PixelBox]:
    """The masks of an image.

    Args:
        size: Width and height in pixels.
        config: How large a window is, and how many masks there are along a side.

    Returns:
        At most `config.masks` squared; every window of `window_pixels` lies inside one of them.
    """
    columns, rows = (
        _masks(length, pixels, config.masks)
        for length, pixels in zip(size, window_pixels(size, config), strict=True)
    )
    return [
        PixelBox(left, top, right, bottom)
        for (top, bottom), (left, right) in product(rows, columns)
    ]


def window_pixels(size: tuple[int, int], config: CertifyConfig) -> tuple[int, int]:
    """Width and height of the largest trigger, in pixels, for an image of this size."""
    width, height = size
    return ceil(config.window * width), ceil(config.window * height)


def _masks(length: int, window: int, masks: int) -> list[tuple[int, int]]:
    """Begin and end of the masks along one side."""
    stride = ceil((length - window + 1) / masks)
    size = min(length, window + stride - 1)
    starts = sorted({min(number * stride, length - size) for number in range(masks)})
    return [(start, start + size) for start in starts]
