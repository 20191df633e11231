"""The media guard on thousands of damaged and hostile files: pixels, or a clear error.

Examples are small: files of at most a few kilobytes, images of at most 64 x 64 pixels.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from server.config import MediaLimits
from server.errors import (
    ImageDimensions,
    ImageTooLarge,
    ImageUndecodable,
    ServerError,
    UnsupportedImage,
)
from server.security.media import open_images
from tests.support.png import COLOURS, COLOURS_ALPHA, GREY, GREY_ALPHA, PALETTE, chunk, png
from tests.support.profiles import grey_profile, srgb_profile, swapped_profile

LIMITS = replace(
    MediaLimits(),
    image_bytes=20_000,
    image_pixels=64 * 64,
    max_side=256,
    min_side=1,
    max_aspect=100,
)
REFUSALS = (ImageDimensions, ImageTooLarge, ImageUndecodable, UnsupportedImage)

FUZZ = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def opened(data: bytes) -> Image.Image | ServerError:
    """What the guard makes of a file; any other exception fails the test."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with warnings.catch_warnings():
        # Pillow warns of odd files before it decodes or refuses them.
        warnings.simplefilter("ignore")
        try:
            image = open_images([("image", url)], LIMITS)[0]
        except REFUSALS as refused:
            error = refused
        else:
            return checked(image)
    assert error.param == "image"
    assert len(error.message) < 300
    assert "at 0x" not in error.message
    return error


def checked(image: Image.Image) -> Image.Image:
    assert image.mode == "RGB"
    assert not image.info
    assert image.width * image.height <= LIMITS.image_pixels
    assert len(image.tobytes()) == 3 * image.width * image.height
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seeds() -> list[bytes]:
    """Good files of every kind, to be damaged."""
    pixels = np.random.default_rng(3).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    clear = Image.fromarray(pixels)
    plain, grey = clear.convert("RGB"), clear.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [plain.rotate(180)]}
    profile = {"icc_profile": swapped_profile()}
    return [
        *(saved(plain, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
        *(saved(plain, kind, exif=exif, **profile) for kind in ("PNG", "JPEG", "WEBP")),
        *(saved(clear, kind) for kind in ("PNG", "WEBP")),
        *(saved(plain, kind, **frames) for kind in ("PNG", "WEBP", "MPO")),
        saved(clear.convert("LA"), "PNG"),
        saved(clear.quantize(8), "PNG"),
        saved(grey, "JPEG", icc_profile=grey_profile()),
        saved(plain.convert("CMYK"), "JPEG"),
        saved(plain, "JPEG", progressive=True),
        png(pixels[..., 0].astype(int) * 257, GREY, 16, before=[(b"tRNS", b"\0\7")]),
    ]


SEEDS = seeds()
Edit = tuple[int, bytes, int]
EDITS = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 8)), max_size=6
)


def edited(file: bytes, edits: list[Edit]) -> bytes:
    data = bytearray(file)
    for place, new, old in edits:
        start = place % (len(data) + 1)
        data[start : start + old] = new
    return bytes(data)


@FUZZ
@given(st.sampled_from(SEEDS), EDITS, st.none() | st.integers(0, 2**16))
def test_damaged_files(file: bytes, edits: list[Edit], cut: int | None) -> None:
    """Bytes replaced, inserted and removed, and the end cut off."""
    data = edited(file, edits)
    opened(data if cut is None else data[: cut % (len(data) + 1)])


CHUNKS = st.tuples(
    st.sampled_from(
        b"PLTE tRNS gAMA cHRM sRGB cICP iCCP eXIf acTL fcTL fdAT iTXt zTXt pHYs sBIT bKGD "
        b"IDAT IHDR prIv".split()
    ),
    st.binary(max_size=40) | st.sampled_from([b"x\0\0" + srgb_profile(), bytes(6), b"\1\r\0\1"]),
)
KINDS = {
    GREY: (1, 2, 4, 8, 16),
    COLOURS: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    COLOURS_ALPHA: (8, 16),
}
SIDES = st.integers(0, 100) | st.integers(0, 2**32 - 1)
CHANNELS = {GREY: 1, COLOURS: 3, PALETTE: 1, GREY_ALPHA: 2, COLOURS_ALPHA: 4}


@FUZZ
@given(
    st.sampled_from([(kind, depth) for kind, depths in KINDS.items() for depth in depths]),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.lists(CHUNKS, max_size=4),
    st.lists(CHUNKS, max_size=2),
)
def test_pngs_of_odd_chunks(
    layout: tuple[int, int],
    size: tuple[int, int],
    before: list[tuple[bytes, bytes]],
    after: list[tuple[bytes, bytes]],
) -> None:
    kind, depth = layout
    channels = CHANNELS[kind]
    samples = np.arange(size[0] * size[1] * channels).reshape(*size, channels) % 2**depth
    samples = samples[..., 0] if channels == 1 else samples
    if kind == PALETTE:
        before = [(b"PLTE", bytes(range(256)) * 3), *before]
    opened(png(samples, kind, depth, before, after))


@FUZZ
@given(SIDES, SIDES, st.sampled_from(list(KINDS)) | st.integers(0, 255))
def test_headers_that_lie(width: int, height: int, kind: int) -> None:
    """The size is believed by nobody: what is refused is refused before pixels are decoded."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, kind, 0, 0, 0])
    small = png(np.zeros((8, 8), int), GREY)
    rest = small[small.index(b"IDAT") - 4 :]
    found = opened(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest)
    if width * height > LIMITS.image_pixels:
        assert isinstance(found, ServerError)


@FUZZ
@given(
    st.sampled_from(["RGB", "RGBA", "L", "CMYK"]),
    st.sampled_from([srgb_profile(), swapped_profile(), grey_profile()]),
    EDITS,
)
def test_damaged_profiles(mode: str, profile: bytes, edits: list[Edit]) -> None:
    picture = Image.new(mode, (8, 8), 77 if mode == "L" else (200, 30, 60, 90)[: len(mode)])
    kind = "PNG" if mode == "RGBA" else "JPEG"
    opened(saved(picture, kind, icc_profile=edited(profile, edits)))
