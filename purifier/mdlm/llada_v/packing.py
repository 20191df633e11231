"""From projected view features to the visual sequence of one image.

The published order: the squeezed image first, then one map over all tiles, cut to the
image's own aspect ratio, shrunk if it is too large, with a newline vector behind every
row, row-major.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from purifier.mdlm.llada_v.images import Layout


def pack_frames(features: Tensor, newline: Tensor) -> Tensor:
    """Packs the frames of one video: halved bilinearly, a newline vector behind every row.

    Args:
        features: [frames, patches, D], projected, one view a frame.
        newline: [D].

    Returns:
        [n, D].
    """
    frames, patches, width = features.shape
    side = round(patches**0.5)
    half = (side + 1) // 2
    planes = features.transpose(1, 2).reshape(frames, width, side, side)
    grid = F.interpolate(planes, (half, half), mode="bilinear").permute(0, 2, 3, 1)
    ends = newline.to(grid.dtype).expand(frames, half, 1, width)
    return torch.cat([grid, ends], dim=2).reshape(-1, width)


def pack(features: Tensor, layout: Layout, newline: Tensor) -> Tensor:
    """Packs the views of images that share a layout.

    Args:
        features: [B, views, patches, D], projected.
        layout: Where the views lie.
        newline: [D].

    Returns:
        [B, n, D].
    """
    batch, _, patches, width = features.shape
    end = newline.to(features.dtype).expand(batch, 1, width)
    if layout.merge == "flat":
        return features.flatten(1, 2)
    if layout.merge == "newline":
        return torch.cat([features.flatten(1, 2), end], dim=1)
    side = round(patches**0.5)
    columns, rows = layout.tiles
    top, bottom, left, right = layout.crop
    tiles = features[:, 1:].reshape(batch, rows, columns, side, side, width)
    # [B, rows, columns, side, side, D] -> [B, D, rows * side, columns * side]
    plane = tiles.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    plane = plane[:, :, top:bottom, left:right]
    if layout.shrunk is not None:
        plane = F.interpolate(plane, layout.shrunk, mode="bilinear")
    grid = plane.permute(0, 2, 3, 1)
    if layout.newline:
        ends = end[:, :, None].expand(batch, grid.shape[1], 1, width)
        grid = torch.cat([grid, ends], dim=2)
    return torch.cat([features[:, 0], grid.flatten(1, 2)], dim=1)
