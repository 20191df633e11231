"""The image plane: where the saliency of views and of tokens meets.

Every view of an image and every token grid covers a `Box` of the image plane. The plane
is cut into equal cells about the size of the finest grid's elements, and values are
carried from the grids onto the cells by area; what lies on padding is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from purifier.mdlm.base import Box, ImageInput, TokenGrid


@dataclass(frozen=True)
class MaskedPlane:
    """Saliency and mask of one image, carried onto the image plane.

    Attributes:
        saliency: float32 [rows, columns], non-negative.
        masked: float32 [rows, columns], the masked share of every cell, 0 to 1.
    """

    saliency: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Raster:
    """A row-major grid of elements that covers a box of the image plane."""

    rows: int
    columns: int
    box: Box

    @property
    def element(self) -> tuple[float, float]:
        """Height and width of one element, in fractions of the image."""
        return (
            (self.box.bottom - self.box.top) / self.rows,
            (self.box.right - self.box.left) / self.columns,
        )


def view_rasters(image: ImageInput, n_patches: int) -> list[Raster]:
    """The patch grids of an image's views, each `n_patches` in a square."""
    side = isqrt(n_patches)
    if side * side != n_patches:
        raise ValueError(f"{n_patches} patches do not form a square.")
    return [Raster(side, side, box) for box in image.views]


def token_rasters(grids: Sequence[TokenGrid]) -> list[Raster]:
    """The token grids of an image, without newline tokens and what consists of them alone."""
    return [Raster(grid.rows, grid.columns, grid.box) for grid in grids if grid.columns]


def grid_values(values: Tensor, grids: Sequence[TokenGrid]) -> list[Tensor]:
    """Splits token values [n_tokens] into the grids' [rows, columns]; newlines fall away."""
    result = []
    for grid in grids:
        if not grid.columns:
            continue
        flat = values[grid.offset : grid.offset + grid.length]
        width = grid.columns + int(grid.newline)
        result.append(flat.reshape(grid.rows, width)[:, : grid.columns])
    return result


def plane_shape(rasters: Sequence[Raster], size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns of the plane: cells about as large as the finest raster's elements.

    Args:
        rasters: At least one.
        size: Width and height of the image in pixels; a cell is at least one pixel.
    """
    height, width = min(
        (raster.element for raster in rasters), key=lambda element: element[0] * element[1]
    )
    rows, columns = max(1, round(1 / height)), max(1, round(1 / width))
    if size is not None:
        rows, columns = min(rows, size[1]), min(columns, size[0])
    return rows, columns


def carry_mass(
    values: Sequence[Tensor], rasters: Sequence[Raster], shape: tuple[int, int]
) -> Tensor:
    """Spreads every element's value over the cells it covers and adds all rasters up.

    Args:
        values: Float tensors [rows, columns], one for each raster.
        rasters: Where the values lie.
        shape: Rows and columns of the plane.

    Returns:
        float64 [rows, columns]; its sum is that of the values, less what lies on padding.
    """
    plane = torch.zeros(shape, dtype=torch.float64)
    for value, raster in zip(values, rasters, strict=True):
        vertical, horizontal = overlaps(raster, shape)
        height, width = raster.element
        plane += (vertical / height) @ value.to(plane) @ (horizontal / width).T
    return plane


def carry_share(
    values: Sequence[Tensor], rasters: Sequence[Raster], shape: tuple[int, int]
) -> Tensor:
    """Mean of the elements over every cell, weighted by area; 0 where no raster reaches.

    Args and shapes as in `carry_mass`; values in [0, 1] give shares in [0, 1].
    """
    plane = torch.zeros(shape, dtype=torch.float64)
    area = torch.zeros(shape, dtype=torch.float64)
    for value, raster in zip(values, rasters, strict=True):
        vertical, horizontal = overlaps(raster, shape)
        plane += vertical @ value.to(plane) @ horizontal.T
        area += vertical.sum(1)[:, None] * horizontal.sum(1)[None, :]
    return torch.where(area > 0, plane / area.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


def overlaps(raster: Raster, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Lengths shared by plane cells and raster elements, along each axis.

    Returns:
        float64 [plane rows, raster rows] and [plane columns, raster columns], in fractions of
        the image's height and width.
    """
    box = raster.box
    return (
        interval_overlaps(shape[0], box.top, box.bottom, raster.rows),
        interval_overlaps(shape[1], box.left, box.right, raster.columns),
    )


def interval_overlaps(cells: int, start: float, stop: float, elements: int) -> Tensor:
    """Overlap lengths of `cells` equal parts of [0, 1] and `elements` of [start, stop]."""
    ours = torch.arange(cells + 1, dtype=torch.float64) / cells
    theirs = start + (stop - start) * torch.arange(elements + 1, dtype=torch.float64) / elements
    low = torch.maximum(ours[:-1, None], theirs[None, :-1])
    high = torch.minimum(ours[1:, None], theirs[None, 1:])
    return (high - low).clamp_min(0.0)


def pool(plane: Tensor, side: int) -> Tensor:
    """Mean over the `side` x `side` neighbourhood of every cell, cells of the image only."""
    return functional.avg_pool2d(
        plane[None, None], side, stride=1, padding=side // 2, count_include_pad=False
    )[0, 0]
