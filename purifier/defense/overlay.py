"""A picture of what was found salient and what was masked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from purifier.defense.fill import cell_edges
from purifier.defense.plane import MaskedPlane

Pixels = NDArray[np.float64]

SHORTEST_SIDE = 320
"""Pixels of a panel's shorter side that small images are enlarged to."""

RAMP = np.array(
    [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64
)
"""Dark to bright, perceptually even (anchors of the inferno map)."""

GAP = 8
OUTLINE = (0, 255, 255)
EDGE = (0, 0, 0)


def draw_overlay(
    image: Image.Image, plane: MaskedPlane, *, scale: int | None = None
) -> Image.Image:
    """The image, and beside it its saliency as a heat map with the masked cells outlined.

    Args:
        image: The image that was asked about.
        plane: Saliency and mask of that image.
        scale: Whole-number enlargement of the image; None enlarges small images until their
            shorter side has `SHORTEST_SIDE` pixels.

    Returns:
        An RGB image of two panels, each of the enlarged image's size.
    """
    if scale is None:
        scale = max(1, -(-SHORTEST_SIDE // min(image.size)))
    size = (image.width * scale, image.height * scale)
    original = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    heated = heat(original, plane.saliency)
    outline(heated, plane.masked >= 0.5)
    result = Image.new("RGB", (2 * size[0] + GAP, size[1]), (255, 255, 255))
    result.paste(original, (0, 0))
    result.paste(heated, (size[0] + GAP, 0))
    return result


def heat(image: Image.Image, saliency: Tensor) -> Image.Image:
    """Blends a heat map of saliency [rows, columns] over an image, hotter is more opaque."""
    values = saliency.double().clamp_min(0).numpy()
    level = np.sqrt(values / max(float(values.max()), np.finfo(np.float64).tiny))
    level = enlarge(level, image.size)
    colours = np.stack(
        [np.interp(level, np.linspace(0, 1, len(RAMP)), RAMP[:, i]) for i in range(3)], axis=-1
    )
    opacity = (0.35 + 0.45 * level)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    return Image.fromarray(np.uint8((1 - opacity) * grey + opacity * colours))


def enlarge(values: Pixels, size: tuple[int, int]) -> Pixels:
    """Cell values [rows, columns] as pixel values [height, width]."""
    width, height = size
    tall = np.repeat(values, np.diff(cell_edges(values.shape[0], height)), axis=0)
    return np.repeat(tall, np.diff(cell_edges(values.shape[1], width)), axis=1)


def outline(image: Image.Image, masked: Tensor) -> None:
    """Draws the border of the masked cells, bool [rows, columns], into an image."""
    rows, columns = masked.shape
    top, left = cell_edges(rows, image.height), cell_edges(columns, image.width)
    inside = np.pad(masked.numpy(), 1)
    lines = []
    for row in range(rows + 1):
        for column in range(columns):
            if inside[row, column + 1] != inside[row + 1, column + 1]:
                lines.append((left[column], top[row], left[column + 1], top[row]))
    for row in range(rows):
        for column in range(columns + 1):
            if inside[row + 1, column] != inside[row + 1, column + 1]:
                lines.append((left[column], top[row], left[column], top[row + 1]))
    draw = ImageDraw.Draw(image)
    for colour, width in ((EDGE, 4), (OUTLINE, 2)):
        for line in lines:
            draw.line(line, fill=colour, width=width)
