"""Colours as they are seen: profiles and gamma are converted to sRGB.

The model was trained on plain numbers, so it reads every image as sRGB, and so do viewers where a
file says nothing. A file that says otherwise looks different from its numbers: a profile may swap
red and blue. Phones save Display P3 and cameras Adobe RGB, so such files are converted and not
refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from PIL import Image, ImageChops, ImageCms

from purifier.errors import ImageError

SAME = 3
"""Steps of 255 by which a profile may move the colours of an image without any effect: the many
slightly different profiles of sRGB leave pixels as they are."""

_SAYS_SOMETHING = {"icc_profile", "gamma", "chromaticity"}
_SRGB_CICP = b"\x01\x0d\x00\x01"
_SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_SRGB_GAMMA = 1 / 2.2
_GAMMA_TOLERANCE = 0.05
_GAMMAS = (0.3, 1.0)
_PRIMARY_TOLERANCE = 0.01
_SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",)}


def to_srgb(image: Image.Image, described: Mapping[str, Any]) -> Image.Image:
    """Converts colours to sRGB; the alpha channel stays.

    Args:
        image: `L`, `LA`, `RGB`, `RGBA` or `CMYK`.
        described: What the file says of its colours: Pillow's `info` with `icc_profile`, `srgb`,
            `gamma`, `chromaticity`, and `cicp` with the bytes of that chunk.

    Returns:
        `L`, `LA`, `RGB` or `RGBA`; `CMYK` if the image is and has no profile.

    Raises:
        ImageError: If the description cannot be read or followed.
    """
    profile = described.get("icc_profile")
    cicp = described.get("cicp")
    if cicp is not None and (profile or cicp != _SRGB_CICP):
        raise _refused("The image says by cICP that its colours are not sRGB")
    if image.mode not in ("LA", "RGBA") or not _SAYS_SOMETHING & described.keys():
        return _converted(image, profile, described)
    colours = _converted(image.convert(image.mode[:-1]), profile, described)
    colours.putalpha(image.getchannel("A"))
    return colours


def _converted(
    colours: Image.Image, profile: bytes | None, described: Mapping[str, Any]
) -> Image.Image:
    if profile:
        return _by_profile(colours, profile)
    if "srgb" in described:
        return colours
    primaries = described.get("chromaticity")
    if colours.mode == "RGB" and primaries is not None and not _are_srgb(primaries):
        raise _refused("The image has primary colours of its own (cHRM)")
    gamma = described.get("gamma") or _SRGB_GAMMA
    if not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        raise _refused("The image has a gamma that no camera or screen has")
    return _by_gamma(colours, gamma)


def _are_srgb(primaries: tuple[float, ...]) -> bool:
    return all(
        abs(found - own) <= _PRIMARY_TOLERANCE
        for found, own in zip(primaries, _SRGB_PRIMARIES, strict=True)
    )


def _by_gamma(colours: Image.Image, gamma: float) -> Image.Image:
    """Applies the gamma of a PNG file, the exponent that its numbers were made with.

    As in libpng, a gamma within 5% of that of sRGB changes nothing. Beyond `_GAMMAS` programs
    disagree, and nearly equal colours would become very different ones.
    """
    if abs(gamma / _SRGB_GAMMA - 1) <= _GAMMA_TOLERANCE:
        return colours
    light = (np.arange(256) / 255) ** (1 / gamma)
    seen = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(255 * seen).astype(int).tolist()
    return colours.point(table * len(colours.getbands()))


def _by_profile(colours: Image.Image, profile: bytes) -> Image.Image:
    source, mode = _source(profile, colours.mode)
    converted = _transform(source, mode).apply(colours.convert(mode))
    assert converted is not None
    if colours.mode == "CMYK":
        return converted
    plain = colours if colours.mode == "RGB" else colours.convert("RGB")
    moved = cast(list[tuple[int, int]], ImageChops.difference(converted, plain).getextrema())
    return converted if max(most for _, most in moved) > SAME else colours


def _source(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsProfile, str]:
    """A profile as it was read, and the mode that an image must have for it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        raise _refused("The image's colour profile cannot be read") from None
    if space not in _SPACES[mode]:
        raise _refused("The image's colour profile is for another kind of image")
    # Grey under a colour profile has equal red, green and blue.
    return source, "RGB" if space == "RGB " else mode


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    try:
        return ImageCms.ImageCmsTransform(
            source, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        raise _refused("The image's colour profile cannot be applied") from None


def _refused(what: str) -> ImageError:
    return ImageError(f"{what}; save it as plain sRGB.", reason="colours")
