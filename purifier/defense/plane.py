"""The image plane: where saliency of views and tokens meets.

Every view of an image and every token grid covers a `Box` of the image plane. The plane
is cut into equal cells about the size of the finest grid's elements, and values are
carried from the grids onto the cells by area.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MaskedPlane:
    """Saliency and mask of one image, carried onto the image plane.

    Attributes:
        saliency: float32 [rows, columns], non-negative.
        masked: float32 [rows, columns], the masked share of every cell, 0 to 1.
    """

    saliency: Tensor
    masked: Tensor
