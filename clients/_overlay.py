"""A picture of the defence: the image, its saliency as a heat map, the masked patches outlined.

Drawn with Pillow alone from the rows and columns that the server returns, so that the base
install can do it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import product

from PIL import Image, ImageDraw, ImageFont, ImageOps

from clients._exceptions import InvalidInput

Grid = Sequence[Sequence[float]]
"""Rows of cells over the image plane, top row first."""

SMALLEST_SIDE = 384
LARGEST_SIDE = 1024
GAP = 12
CAPTION_HEIGHT = 26
MASKED_FROM = 0.5
OUTLINE = (0, 229, 255)
PAPER = (255, 255, 255)
INK = (32, 32, 32)

RAMP = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Anchors of the `inferno` colour map: lightness rises evenly with the value."""


def draw_overlay(
    images: Sequence[bytes], saliency: Sequence[Grid], masked: Sequence[Grid]
) -> bytes:
    """Draws every image beside its heat map, one below the other.

    Args:
        images: PNG, JPEG or WebP files.
        saliency: For every image, non-negative saliency of its cells.
        masked: For every image, the masked share of its cells, 0 to 1.

    Returns:
        A PNG file.

    Raises:
        InvalidInput: If the numbers of images and grids differ, a grid is empty or ragged, or
            an image cannot be decoded.
    """
    if not len(images) == len(saliency) == len(masked) or not images:
        raise InvalidInput("The overlay needs one saliency grid and one mask for every image.")
    rows = [_row(*parts) for parts in zip(images, saliency, masked, strict=True)]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _row(data: bytes, saliency: Grid, masked: Grid) -> Image.Image:
    original = _enlarged(_decoded(data))
    rows, columns = _shape(saliency)
    if _shape(masked) != (rows, columns):
        raise InvalidInput("Saliency and mask must have the same rows and columns.")
    overlay = _with_heat(original, saliency)
    _outline(overlay, masked)
    width, height = original.size
    row = Image.new("RGB", (2 * width + 3 * GAP, height + GAP + CAPTION_HEIGHT), PAPER)
    row.paste(original, (GAP, GAP))
    row.paste(overlay, (width + 2 * GAP, GAP))
    share = sum(map(sum, masked)) / (rows * columns)
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(14)
    baseline = height + GAP + 5
    draw.text((GAP, baseline), "image", fill=INK, font=font)
    caption = f"saliency; masked patches outlined ({share:.0%})"
    draw.text((width + 2 * GAP, baseline), caption, fill=INK, font=font)
    return row


def _decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InvalidInput("The image cannot be decoded; send a PNG, JPEG or WebP file.") from None


def _enlarged(image: Image.Image) -> Image.Image:
    """The image at a size that can be looked at: small ones keep their pixels as squares."""
    side = min(image.size)
    if side < SMALLEST_SIDE:
        factor = math.ceil(SMALLEST_SIDE / side)
        whole = factor >= 3
        scale = float(factor) if whole else SMALLEST_SIDE / side
        method = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    else:
        scale = min(1.0, LARGEST_SIDE / max(image.size))
        method = Image.Resampling.LANCZOS
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, method)


def _shape(grid: Grid) -> tuple[int, int]:
    widths = {len(row) for row in grid}
    if len(widths) != 1 or 0 in widths:
        raise InvalidInput("A grid must have rows of equal length, at least one cell each.")
    return len(grid), widths.pop()


def _with_heat(image: Image.Image, saliency: Grid) -> Image.Image:
    rows, columns = _shape(saliency)
    values = [float(value) for row in saliency for value in row]
    lowest, span = min(values), max(values) - min(values)
    shares = [(value - lowest) / span if span > 0 else 0.0 for value in values]
    cells = Image.new("L", (columns, rows))
    # Saliency has a long tail; the root shows what lies below its peak.
    cells.putdata([round(255 * math.sqrt(share)) for share in shares])
    heat = cells.resize(image.size, Image.Resampling.BICUBIC)
    channels = [heat.point(table) for table in _ramp_tables()]
    opacity = heat.point([round(70 + 0.5 * level) for level in range(256)])
    return Image.composite(Image.merge("RGB", channels), image, opacity)


def _ramp_tables() -> list[list[int]]:
    """One lookup table of 256 levels for red, green and blue."""
    tables = []
    for channel in range(3):
        anchors = [colour[channel] for colour in RAMP]
        table = []
        for level in range(256):
            position = level / 255 * (len(anchors) - 1)
            low = min(int(position), len(anchors) - 2)
            table.append(round(anchors[low] + (position - low) * (anchors[low + 1] - anchors[low])))
        tables.append(table)
    return tables


def _outline(image: Image.Image, masked: Grid) -> None:
    """Draws the border of the masked region, cell edge by cell edge."""
    rows, columns = _shape(masked)
    inside = {
        (row, column)
        for row, column in product(range(rows), range(columns))
        if masked[row][column] >= MASKED_FROM
    }
    draw = ImageDraw.Draw(image)
    stroke = max(2, min(image.size) // 160)
    xs = [round(column * (image.width - 1) / columns) for column in range(columns + 1)]
    ys = [round(row * (image.height - 1) / rows) for row in range(rows + 1)]
    for row, column in inside:
        left, right, top, bottom = xs[column], xs[column + 1], ys[row], ys[row + 1]
        edges = {
            (row - 1, column): (left, top, right, top),
            (row + 1, column): (left, bottom, right, bottom),
            (row, column - 1): (left, top, left, bottom),
            (row, column + 1): (right, top, right, bottom),
        }
        for neighbour, line in edges.items():
            if neighbour not in inside:
                draw.line(line, fill=OUTLINE, width=stroke)
