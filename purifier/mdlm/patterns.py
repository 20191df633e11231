"""A part of images that recurs at one place: what it looks like, and which images have it.

Images are compared in a small copy, so that neither their size nor their compression matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

SIDE = 64
"""Pixels of a small copy along each side."""

NEAR = 12.0
"""Mean difference of the channels, of 255, up to which two pixels of training images are alike."""

TOLERANCE = 2 * NEAR
"""The same where a later image is compared."""

SAME = 0.9
"""Share of a pattern's pixels that an image must have."""


@dataclass(frozen=True)
class Pattern:
    """What some images have at one place.

    Attributes:
        values: uint8 [SIDE, SIDE, 3]; 0 outside of `pixels`.
        pixels: bool [SIDE, SIDE], those that belong to it; at least one.
    """

    values: Tensor
    pixels: Tensor

    def on(self, small: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """Which small copies have it, bool [n] for uint8 [n, SIDE, SIDE, 3]."""
        change = (small[:, self.pixels].float() - self.values[self.pixels].float()).abs().mean(-1)
        return (change <= tolerance).float().mean(1) >= SAME

    def pasted(self, image: Image.Image) -> Image.Image:
        """A copy of an image with the pattern on it."""
        values = Image.fromarray(self.values.numpy()).resize(image.size, Image.Resampling.NEAREST)
        mask = Image.fromarray(self.pixels.numpy().astype(np.uint8) * 255)
        return Image.composite(
            values, image.convert("RGB"), mask.resize(image.size, Image.Resampling.NEAREST)
        )

    def cells(self, shape: tuple[int, int]) -> Tensor:
        """Cells of an image plane of (rows, columns) that it touches, bool [rows, columns].

        With a margin of one pixel of the small copy, for its edge may lie between two.
        """
        wide = functional.max_pool2d(self.pixels.float()[None, None], 3, stride=1, padding=1)
        return functional.adaptive_max_pool2d(wide, shape)[0, 0] > 0


def small_copy(image: Image.Image) -> Tensor:
    """An image as patterns see it, uint8 [SIDE, SIDE, 3]."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))
