"""Images on their way to the server: path, bytes or picture in, data URL out."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clients._exceptions import InvalidInput

ImageLike = str | os.PathLike[str] | bytes | Image.Image
"""A path, a `data:` URL, the bytes of a PNG, JPEG or WebP file, or a PIL image."""

Images = ImageLike | Sequence[ImageLike] | None


def media_type(data: bytes) -> str:
    """Media type of an image file by its first bytes.

    Raises:
        InvalidInput: If it is not a PNG, JPEG or WebP.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise InvalidInput("An image must be a PNG, JPEG or WebP file; convert it first.")


def image_bytes(image: ImageLike) -> bytes:
    """The image as a file in memory.

    Raises:
        InvalidInput: If the path cannot be read, or a data URL is damaged.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        _plain(image).save(buffer, format="PNG")
        return buffer.getvalue()
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image.startswith("data:"):
        return _data_url_bytes(image)
    if not isinstance(image, (str, os.PathLike)):
        raise InvalidInput(f"An image is a path, bytes or a PIL image, not {type(image).__name__}.")
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError):
        raise InvalidInput(f"The image {os.fspath(image)!r} cannot be read.") from None


def data_url(image: ImageLike) -> str:
    """The image as a data URL, its bytes unchanged.

    Raises:
        InvalidInput: If it cannot be read or is not a PNG, JPEG or WebP.
    """
    if isinstance(image, str) and image.startswith("data:"):
        return image
    data = image_bytes(image)
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode('ascii')}"


def as_list(images: Images) -> list[ImageLike]:
    """One image, several or none, as a list."""
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, bytes, Image.Image)):
        return [images]
    return list(images)


def _plain(image: Image.Image) -> Image.Image:
    """A picture as PNG can hold it and as it looks: transparent parts white."""
    if image.mode.startswith("I;16"):
        return image
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    plain = image.convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB"):
        # The profile of other colours, such as those of ink, does not fit any more.
        plain.info.pop("icc_profile", None)
    return plain


def _data_url_bytes(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidInput("A data URL must read data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise InvalidInput("The base64 text of the data URL is damaged.") from None
