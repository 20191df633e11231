"""Turning an image as its EXIF orientation says."""

from __future__ import annotations

from PIL import Image

_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, exif: object) -> Image.Image:
    """The image as it is seen.

    Only EXIF itself counts: Pillow would also take an orientation from XMP, which browsers do not.

    Args:
        image: The image.
        exif: The file's EXIF block; anything but bytes says nothing.
    """
    turn = _TURNS.get(_orientation(exif)) if isinstance(exif, bytes) else None
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes) -> int:
    """EXIF orientation; 1 (upright) where there is none or the block cannot be read."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_TAG)
    except Exception:
        # Pillow raises many kinds of exceptions on a damaged block. Viewers show such an image as
        # it is stored, so it is no reason to refuse it.
        return 1
    return value if isinstance(value, int) else 1
