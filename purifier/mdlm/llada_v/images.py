"""LLaDA-V's image path: an image becomes views of the tower's size, and a layout.

A view is what the tower sees: the whole image squeezed to a square, and, with
`anyres`, the tiles of the image resized into the best of the candidate resolutions.
The layout says where the tokens made of the views lie on the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from purifier.errors import InvalidPrompt
from purifier.imaging.decode import as_rgb
from purifier.mdlm.base import Box, ImageInput, TokenGrid
from purifier.mdlm.llada_v.config import LladaVConfig

_WHOLE = Box(0.0, 0.0, 1.0, 1.0)
_PAD_COLOUR = (127, 127, 127)
_SHRINK_ABOVE = 1.1


@dataclass(frozen=True)
class Layout:
    """How the views of one image become its visual sequence.

    Attributes:
        merge: `flat` (views one after the other), `newline` (one view and one newline token)
            or `grid` (base view, then one map over all tiles).
        tiles: Tile columns and rows (`grid`).
        crop: Rows and columns kept of the tile map: top, bottom, left, right (`grid`).
        shrunk: Rows and columns after the `anyres_max_N` resize; None if not resized.
        newline: Whether every row of the tile map ends with a newline token.
    """

    merge: str
    tiles: tuple[int, int] = (1, 1)
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    shrunk: tuple[int, int] | None = None
    newline: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the tile map, newline tokens not counted."""
        top, bottom, left, right = self.crop
        return self.shrunk or (bottom - top, right - left)


def best_resolution(
    size: tuple[int, int], candidates: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
    """The candidate that keeps most of the image's pixels, then wastes least; first one wins.

    Args:
        size: Image width and height.
        candidates: Widths and heights to choose from.
    """
    width, height = size

    def fitness(candidate: tuple[int, int]) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - candidate[0] * candidate[1]

    return max(candidates, key=fitness)


def process_image(image: Image.Image, config: LladaVConfig, *, n_images: int = 1) -> ImageInput:
    """Views, pixels and token layout of one image of a prompt with `n_images` images.

    Several images are each padded to one square view, whatever the aspect mode, as the
    published evaluation code does.
    """
    image = as_rgb(image)
    tile = config.vision.image_size
    aspect = config.aspect_ratio if n_images == 1 else "pad"
    if aspect.startswith("anyres"):
        views, boxes = _tiled_views(image, tile, config.pinpoints)
    elif aspect == "pad":
        padded, box = _pad_to_square(image)
        views, boxes = [padded.resize((tile, tile), Image.Resampling.BICUBIC)], [box]
    else:
        views, boxes = [image.resize((tile, tile), Image.Resampling.BICUBIC)], [_WHOLE]
    layout = image_layout(image.size, len(views), config)
    grids = _token_grids(layout, tuple(boxes), config.patches_per_side)
    return ImageInput(
        image=image,
        pixels=_normalise(views),
        views=tuple(boxes),
        grids=grids,
        n_tokens=sum(grid.length for grid in grids),
    )


def image_layout(size: tuple[int, int], n_views: int, config: LladaVConfig) -> Layout:
    """The layout of an image of `size` (width, height) that became `n_views` views."""
    if config.merge_type == "flat":
        return Layout("flat")
    if n_views == 1:
        return Layout("newline" if config.merge_type == "spatial_unpad" else "flat")
    side = config.patches_per_side
    tile = config.vision.image_size
    target = best_resolution(size, config.pinpoints)
    columns, rows = target[0] // tile, target[1] // tile
    if config.merge_type == "spatial":
        return Layout("grid", (columns, rows), (0, rows * side, 0, columns * side))
    crop = _unpad(size, rows * side, columns * side)
    height, width = crop[1] - crop[0], crop[3] - crop[2]
    if min(height, width) < 1:
        raise _too_elongated()
    shrunk = None
    if config.max_tiles is not None:
        times = math.sqrt(height * width / (config.max_tiles * side**2))
        if times > _SHRINK_ABOVE:
            shrunk = (int(height // times), int(width // times))
            if min(shrunk) < 1:
                raise _too_elongated()
    return Layout("grid", (columns, rows), crop, shrunk, newline=True)


def _too_elongated() -> InvalidPrompt:
    return InvalidPrompt(
        "The image is too elongated: no visual token is left of it; crop its longer side."
    )


def _unpad(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int, int, int]:
    """The part of the tile map without padding: top, bottom, left, right.

    The published code rounds the scaled side down; transformers rounds it to seven digits
    first, which gives another width for some sizes.
    """
    width, height = size
    if width / height > columns / rows:
        kept = int(height * (columns / width))
        pad = (rows - kept) // 2
        return pad, rows - pad, 0, columns
    kept = int(width * (rows / height))
    pad = (columns - kept) // 2
    return 0, rows, pad, columns - pad


def _tiled_views(
    image: Image.Image, tile: int, pinpoints: tuple[tuple[int, int], ...]
) -> tuple[list[Image.Image], list[Box]]:
    """The squeezed image, then the tiles of the image centred on black, row-major."""
    width, height = image.size
    target_width, target_height = best_resolution(image.size, pinpoints)
    if target_width / width < target_height / height:
        new_width = target_width
        new_height = min(math.ceil(height * (target_width / width)), target_height)
    else:
        new_height = target_height
        new_width = min(math.ceil(width * (target_height / height)), target_width)
    left, top = (target_width - new_width) // 2, (target_height - new_height) // 2
    canvas = Image.new("RGB", (target_width, target_height))
    canvas.paste(image.resize((new_width, new_height), Image.Resampling.BICUBIC), (left, top))

    views = [image.resize((tile, tile), Image.Resampling.BICUBIC)]
    boxes = [_WHOLE]
    for y in range(0, target_height, tile):
        for x in range(0, target_width, tile):
            views.append(canvas.crop((x, y, x + tile, y + tile)))
            boxes.append(
                Box(
                    (x - left) / new_width,
                    (y - top) / new_height,
                    (x + tile - left) / new_width,
                    (y + tile - top) / new_height,
                )
            )
    return views, boxes


def _pad_to_square(image: Image.Image) -> tuple[Image.Image, Box]:
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    canvas = Image.new("RGB", (side, side), _PAD_COLOUR)
    canvas.paste(image, (left, top))
    box = Box(-left / width, -top / height, (side - left) / width, (side - top) / height)
    return canvas, box


def _normalise(views: list[Image.Image]) -> Tensor:
    """float32 [views, 3, side, side] in [-1, 1]; mean and deviation are 0.5 (SigLIP)."""
    pixels = np.stack([np.asarray(view) for view in views])
    scaled = torch.from_numpy((pixels * (1 / 255)).astype(np.float32))
    return ((scaled - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()


def _token_grids(layout: Layout, boxes: tuple[Box, ...], side: int) -> tuple[TokenGrid, ...]:
    if layout.merge == "grid":
        rows, columns = layout.shape
        base = TokenGrid(0, side, side, newline=False, box=boxes[0])
        return (base, TokenGrid(base.length, rows, columns, layout.newline, _WHOLE))
    grids = [
        TokenGrid(number * side * side, side, side, newline=False, box=box)
        for number, box in enumerate(boxes)
    ]
    if layout.merge == "newline":
        # A grid of no columns with a newline: one token that covers no part of the image.
        grids.append(TokenGrid(side * side, 1, 0, newline=True, box=_WHOLE))
    return tuple(grids)
