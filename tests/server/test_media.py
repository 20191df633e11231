"""What the media guard makes of good images; bad ones are asked of the running server."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import server
from server.config import MediaLimits
from server.errors import ImageTooLarge, TooManyImages, UnsupportedImage
from server.security.media import guard_pillow, open_images
from tests.support.service import data_url

LIMITS = MediaLimits()


def opened(url: str, limits: MediaLimits = LIMITS) -> Image.Image:
    return open_images([("image", url)], limits)[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats(picture: Image.Image, kind: str) -> None:
    image = opened(data_url(picture, kind))
    assert (image.mode, image.size) == ("RGB", picture.size)


def test_lossless_image_is_unchanged(picture: Image.Image) -> None:
    assert opened(data_url(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_modes_become_rgb(picture: Image.Image, mode: str) -> None:
    grey = picture.convert("L")
    if mode == "I;16":
        source = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        source = picture.convert(mode)
    image = opened(data_url(source))
    assert (image.mode, image.size) == ("RGB", picture.size)
    if mode == "I;16":
        assert image.convert("L").tobytes() == grey.tobytes()


def test_exif_orientation_is_applied_and_metadata_dropped(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a private remark"
    image = opened(data_url(picture, "JPEG", exif=exif, quality=95))
    assert image.size == (picture.height, picture.width)
    assert not image.info
    assert not image.getexif()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(picture: Image.Image, kind: str) -> None:
    url = data_url(picture, kind, save_all=True, append_images=[picture.rotate(180)], duration=100)
    with pytest.raises(UnsupportedImage, match="animated") as caught:
        opened(url)
    assert caught.value.param == "image"


def test_pixels_of_all_images_together_are_bounded(picture: Image.Image) -> None:
    pixels = picture.width * picture.height
    limits = replace(LIMITS, request_pixels=2 * pixels)
    urls = [(f"image[{n}]", data_url(picture)) for n in range(3)]
    assert len(open_images(urls[:2], limits)) == 2
    with pytest.raises(ImageTooLarge, match="together") as caught:
        open_images(urls, limits)
    assert caught.value.param == "image[2]"


def test_number_is_checked_before_anything_is_decoded() -> None:
    with pytest.raises(TooManyImages):
        open_images([("image", "junk")] * 9, LIMITS)


def test_pillows_own_limit_is_set() -> None:
    guard_pillow(LIMITS)
    assert LIMITS.image_pixels == Image.MAX_IMAGE_PIXELS


def test_nothing_else_in_the_service_opens_images() -> None:
    folder = Path(server.__file__).parent
    openers = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("open", "frombytes", "frombuffer")
        and isinstance(node.value, ast.Name)
        and node.value.id == "Image"
    }
    assert not openers
