"""The one decoder of image files: bytes in, upright opaque sRGB pixels out.

A backdoor's trigger must not be invisible to the person who looks at an image. So the pixels are
those that a viewer shows on a white page: the only frame, colours converted to sRGB, turned as the
EXIF orientation says, transparent parts white. What different viewers show differently is refused:
animations, colours that cannot be converted.

Size, format and number of pixels are judged from the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from purifier.errors import ImageError, PurifierError
from purifier.imaging.colours import to_srgb
from purifier.imaging.modes import TransparentColour, on_white, without_palette
from purifier.imaging.orientation import upright
from purifier.imaging.png import animated, checked_chunks
from purifier.imaging.webp import canvas_size

FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that are read everywhere, by Pillow's names."""


@dataclass(frozen=True)
class ImageLimits:
    """How large an image file may be.

    Attributes:
        bytes: Of the encoded file.
        pixels: Width times height.
        side: Pixels of the longer side.
    """

    bytes: int = 100_000_000
    pixels: int = 25_000_000
    side: int = 16_384


DEFAULT_LIMITS = ImageLimits()


def read_image_file(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """`decode_image` of a file.

    Raises:
        ImageError: As `decode_image`, and if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed tells a file that is too large, without reading it whole.
            data = file.read(limits.bytes + 1)
    except OSError:
        raise ImageError("The image file cannot be read.", reason="damaged") from None
    return decode_image(data, limits)


def decode_image(
    data: bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decodes an image file.

    Args:
        data: The file.
        limits: How large it may be.
        check_size: Called with width and height as the header gives them, before pixels are
            decoded; may raise to refuse the image.

    Returns:
        RGB, 8 bits, without metadata.

    Raises:
        ImageError: If it is too large, of another format than `FORMATS`, animated, damaged, or its
            colours cannot be converted.
    """
    if len(data) > limits.bytes:
        raise ImageError(
            f"The image file has more than {limits.bytes:,} bytes; make it smaller.",
            reason="bytes",
        )
    _check_size(canvas_size(data) or (1, 1), limits)
    with _opened(data, limits) as file:
        _check_size(file.size, limits)
        _check_header(file, data)
        if check_size is not None:
            check_size(*file.size)
        try:
            return _pixels(file)
        except PurifierError:
            raise
        except Exception:
            # Pillow's decoders raise many kinds of exceptions on damaged files.
            raise _damaged() from None


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in memory as RGB, transparent parts white.

    Its orientation and its profile are left aside: its pixels are what the caller made them.
    """
    return on_white(without_palette(picture, TransparentColour.of(picture)))


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits) from None
    except UnidentifiedImageError:
        raise ImageError(
            "The image cannot be read; it is damaged, or neither PNG, JPEG nor WebP.",
            reason="format",
        ) from None
    except Exception:
        # Pillow's decoders raise many kinds of exceptions on damaged files.
        raise _damaged() from None


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.pixels or max(size) > limits.side:
        raise _too_many_pixels(limits)


def _check_header(file: Image.Image, data: bytes) -> None:
    if file.format == "PNG":
        chunks = checked_chunks(data)
        if b"cICP" in chunks:
            file.info["cicp"] = chunks[b"cICP"]
    if getattr(file, "is_animated", False) and file.format != "MPO":
        raise animated()


def _pixels(file: Image.Image) -> Image.Image:
    # Pillow takes in what stands behind the pixels too; viewers know the orientation from there,
    # but no colours and no transparency.
    described = dict(file.info)
    transparent = TransparentColour.of(file)
    file.load()
    exif = file.info.get("exif")
    file.info = described
    colours = to_srgb(without_palette(file, transparent), {str(k): v for k, v in described.items()})
    return on_white(upright(colours, exif))


def _too_many_pixels(limits: ImageLimits) -> ImageError:
    return ImageError(
        f"An image may have at most {limits.pixels:,} pixels and sides of at most "
        f"{limits.side:,}; make it smaller.",
        reason="pixels",
    )


def _damaged() -> ImageError:
    return ImageError(
        "The image cannot be read: it is truncated or damaged.",
        reason="damaged",
    )
