"""The media guard: images of requests, from data URL to pixels.

An image comes as a data URL. Its length is checked before it is decoded from base64, its
format, pixels and sides from the header before a pixel is decoded. The decoder is the one that
data sets are read with, `purifier.imaging.decode`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from PIL import Image

from purifier.base64_text import canonical_base64
from purifier.errors import ImageError, InvalidBase64
from purifier.imaging.decode import ImageLimits, decode_image
from server.config import MediaLimits
from server.errors import (
    ImageDimensions,
    ImageTooLarge,
    ImageUndecodable,
    ServerError,
    TooManyImages,
    UnsupportedImage,
)

_MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/jpg", "image/webp"})
_LONGEST_HEADER = 100


def guard_pillow(limits: MediaLimits) -> None:
    """Sets Pillow's own limit, as a second line behind this module's checks."""
    Image.MAX_IMAGE_PIXELS = limits.image_pixels


def open_images(urls: Sequence[tuple[str, str]], limits: MediaLimits) -> list[Image.Image]:
    """Opens all images of a request.

    Args:
        urls: Pairs of the field's path in the request and the data URL.
        limits: What is allowed.

    Returns:
        RGB images, as `decode_image` makes them.

    Raises:
        TooManyImages, UnsupportedImage, ImageTooLarge, ImageDimensions, ImageUndecodable:
            With the path as `param`.
    """
    if len(urls) > limits.images:
        raise TooManyImages(
            f"A request may have at most {limits.images} images, this one has {len(urls)}.",
            param=urls[limits.images][0],
        )
    images: list[Image.Image] = []
    budget = limits.request_pixels
    for param, url in urls:
        images.append(_open(_decode(url, limits, param), limits, budget, param))
        budget -= images[-1].width * images[-1].height
    return images


def _decode(url: str, limits: MediaLimits, param: str) -> bytes:
    """Takes the bytes out of a data URL."""
    url = url.strip()
    end = url.find(",", 0, _LONGEST_HEADER)
    if not url[:5].lower() == "data:" or end < 0:
        raise UnsupportedImage(
            "Images must be data URLs: data:image/png;base64,...; nothing is fetched from "
            "other addresses.",
            param=param,
        )
    media_type, *parameters = (part.strip() for part in url[5:end].lower().split(";"))
    if media_type not in _MEDIA_TYPES:
        raise UnsupportedImage(param=param)
    if not parameters or parameters[-1] != "base64":
        raise ImageUndecodable(
            "The data URL must be base64: data:image/png;base64,...", param=param
        )
    try:
        text = canonical_base64(url[end + 1 :])
    except InvalidBase64 as error:
        raise ImageUndecodable(
            f"The data URL is not valid base64: {error.message}.", param=param
        ) from None
    if len(text) > (limits.image_bytes + 2) // 3 * 4:
        raise ImageTooLarge(
            f"An image may have at most {limits.image_bytes:,} bytes. Send a smaller one.",
            param=param,
        )
    return base64.b64decode(text, validate=True)


def _open(data: bytes, limits: MediaLimits, budget: int, param: str) -> Image.Image:
    """Decodes one image whose header keeps the limits."""

    def check_size(width: int, height: int) -> None:
        _check_size((width, height), limits, budget, param)

    allowed = ImageLimits(limits.image_bytes, limits.image_pixels, limits.max_side)
    try:
        return decode_image(data, allowed, check_size)
    except ImageError as error:
        raise _refusal(error, param) from None


def _refusal(error: ImageError, param: str) -> ServerError:
    if error.reason in ("bytes", "pixels"):
        return ImageTooLarge(error.message, param=param)
    if error.reason == "damaged":
        return ImageUndecodable(error.message, param=param)
    return UnsupportedImage(error.message, param=param)


def _check_size(size: tuple[int, int], limits: MediaLimits, budget: int, param: str) -> None:
    short, long = sorted(size)
    if short * long > budget:
        raise ImageTooLarge(
            f"The images of a request may have {limits.request_pixels:,} pixels together.",
            param=param,
        )
    if short < limits.min_side:
        raise ImageDimensions(
            f"The image is {size[0]}x{size[1]} pixels; both sides must have at least "
            f"{limits.min_side}.",
            param=param,
        )
    if long > limits.max_aspect * short:
        raise ImageDimensions(
            f"The image is {size[0]}x{size[1]} pixels; one side may be at most "
            f"{limits.max_aspect:g} times the other. Crop it.",
            param=param,
        )
