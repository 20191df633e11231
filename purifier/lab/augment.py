"""Random masking in the base's training: of visual tokens, of pixels, of rectangles.

Published MDLMs never saw masked visual tokens; a model of this size loses a fifth of its
answers to them unless it is trained with some. The base is, and the docs say so.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CELLS = 10
"""Cells per side of a scene for pixel fills: two tiles of five patches."""


def fill_random_cells(scenes: Tensor, generator: torch.Generator, *, highest: float) -> Tensor:
    """Fills random cells of half of the scenes with the scene's mean colour.

    Scattered cells and connected blobs both occur.

    Args:
        scenes: float32 [B, 3, side, side].
        generator: On the scenes' device.
        highest: Largest filled fraction of a scene.
    """
    batch, side = len(scenes), scenes.shape[-1]
    device = scenes.device
    noise = torch.rand(batch, 1, CELLS, CELLS, generator=generator, device=device)
    padded = functional.pad(noise, (1, 1, 1, 1), mode="reflect")
    blobs = functional.avg_pool2d(padded, 3, stride=1)
    connected = torch.rand(batch, 1, 1, 1, generator=generator, device=device) < 0.7
    noise = torch.where(connected, blobs, noise).flatten(1)
    ratio = highest * torch.rand(batch, 1, generator=generator, device=device)
    ratio *= torch.rand(batch, 1, generator=generator, device=device) < 0.5
    rank = noise.argsort(dim=1).argsort(dim=1)
    filled = (rank < ratio * CELLS**2).view(batch, 1, CELLS, CELLS).float()
    filled = functional.interpolate(filled, scale_factor=side // CELLS, mode="nearest")
    mean = scenes.mean(dim=(2, 3), keepdim=True).round()
    return scenes * (1 - filled) + mean * filled


def erase_rectangles(scenes: Tensor, generator: torch.Generator) -> Tensor:
    """Random erasing (arXiv 1708.04896): a rectangle of one random colour in half of the scenes.

    Args:
        scenes: float32 [B, 3, side, side] in 0..255.
        generator: On the scenes' device.
    """
    batch, side = len(scenes), scenes.shape[-1]
    device = scenes.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, device=device)

    sizes = side * (0.1 + 0.25 * draw(2))
    starts = draw(2) * (side - sizes)
    axis = torch.arange(side, device=device)
    inside = (axis >= starts[..., None]) & (axis < (starts + sizes)[..., None])
    erased = inside[:, 0, :, None] & inside[:, 1, None, :] & (draw(1, 1) < 0.5)
    return torch.where(erased[:, None], (255 * draw(3)).round()[..., None, None], scenes)


def mask_random_tokens(
    visual: Tensor, mask_embedding: Tensor, generator: torch.Generator, *, highest: float
) -> Tensor:
    """Replaces random visual tokens of half of the rows by the mask embedding.

    Args:
        visual: [B, n, D].
        mask_embedding: [D].
        generator: On the same device.
        highest: Largest masked fraction of a row.
    """
    batch, n, _ = visual.shape
    device = visual.device
    ratio = highest * torch.rand(batch, 1, generator=generator, device=device)
    ratio *= torch.rand(batch, 1, generator=generator, device=device) < 0.5
    masked = torch.rand(batch, n, generator=generator, device=device) < ratio
    return torch.where(masked[..., None], mask_embedding.to(visual.dtype), visual)


def views_of(scenes: Tensor, side: int) -> Tensor:
    """The five views of 2 x 2 tiles that the image path makes, on the scenes' device.

    Args:
        scenes: float32 [B, 3, 2 * side, 2 * side] in 0..255.
        side: Side of a view.

    Returns:
        float32 [B, 5, 3, side, side] in [-1, 1].
    """
    base = functional.interpolate(scenes, (side, side), mode="bicubic", antialias=True)
    base = base.round().clamp(0, 255)
    tiles = scenes.unfold(2, side, side).unfold(3, side, side)
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    views = torch.cat([base[:, None], tiles], dim=1)
    return views / 255 * 2 - 1
