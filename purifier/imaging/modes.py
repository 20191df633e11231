"""From any of Pillow's pixel formats to 8 bits a channel, and from transparency to white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from purifier.errors import ImageError

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""What one step of grey of fewer than 8 bits becomes in 8."""
_WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class TransparentColour:
    """The colour of a PNG file that stands for transparency (`tRNS` without a palette).

    Attributes:
        value: Grey, or red, green and blue, in the steps of the file; None if there is none.
        raw: Pillow's name of the file's samples, as in `L;2` or `RGB;16B`; empty in memory.
    """

    value: int | tuple[int, int, int] | None
    raw: str

    @classmethod
    def of(cls, image: Image.Image) -> TransparentColour:
        """That of an image; of a file before its pixels are loaded, for then it is forgotten."""
        value = image.info.get("transparency")
        if image.mode not in ("1", "L", "RGB", *_WIDE_GREY) or not isinstance(value, int | tuple):
            value = None
        tiles = getattr(image, "tile", None)
        raw = tiles[0].args if tiles else ""
        return cls(value, raw if isinstance(raw, str) else "")


def without_palette(image: Image.Image, transparent: TransparentColour) -> Image.Image:
    """Any image with 8 bits a channel, as `L`, `LA`, `RGB`, `RGBA` or `CMYK`.

    Of 16 bits the upper 8 are taken, of grey and of colours alike.

    Raises:
        ImageError: If it has 16-bit colours of which one is transparent: which pixels have just
            this one is lost with the lower bits.
    """
    if image.mode in _WIDE_GREY:
        return _narrowed(image, transparent.value)
    if image.mode == "1":
        image = image.convert("L")
    if transparent.value is not None:
        return _with_alpha(image, transparent)
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    # A palette, and what there is in memory alone: YCbCr, HSV, RGBa and more.
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """RGB of `L`, `LA`, `RGB`, `RGBA` or `CMYK`, without metadata, transparent parts white."""
    if image.mode in ("LA", "RGBA"):
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(image.convert("RGB"), mask=image.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    rgb.info = {}
    return rgb


def _narrowed(image: Image.Image, transparent: Any) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I":
        values = values.clip(0, 65_535)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(transparent, int):
        grey.putalpha(_opaque(values != transparent))
    return grey


def _with_alpha(image: Image.Image, transparent: TransparentColour) -> Image.Image:
    value, pixels = transparent.value, np.asarray(image)
    if transparent.raw == "RGB;16B":
        raise ImageError(
            "A PNG with 16-bit colours and a transparent one among them is not read; save it "
            "with 8 bits or with an alpha channel.",
            reason="colours",
        )
    if isinstance(value, tuple):
        other = (pixels != np.array([part & 0xFF for part in value])).any(-1)
    else:
        step = _GREY_STEPS.get(transparent.raw, 1)
        other = pixels != (int(value or 0) & (255 // step)) * step
    image = image.copy()
    image.putalpha(_opaque(other))
    return image


def _opaque(where: np.ndarray[Any, np.dtype[np.bool_]]) -> Image.Image:
    return Image.fromarray(np.where(where, np.uint8(255), np.uint8(0)))
