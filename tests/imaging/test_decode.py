"""One decoder: what a request shows and what a data set shows are the same pixels."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purifier.data.sample import open_image
from purifier.errors import ImageError, RowError
from purifier.imaging.decode import DEFAULT_LIMITS, FORMATS, as_rgb, decode_image, read_image_file
from server.config import MediaLimits
from server.errors import ServerError
from server.security.media import open_images
from tests.support.png import COLOURS, COLOURS_ALPHA, GREY, GREY_ALPHA, PALETTE, png
from tests.support.profiles import grey_profile, renamed, srgb_profile, swapped_profile

Reader = Callable[[bytes], np.ndarray]


def from_request(data: bytes) -> np.ndarray:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return np.asarray(open_images([("image", url)], MediaLimits())[0])


def from_row(data: bytes) -> np.ndarray:
    return np.asarray(open_image(Path(), data))


@pytest.fixture(params=[from_request, from_row], ids=["request", "row"])
def read(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param
    return reader


def refusal(data: bytes) -> tuple[ServerError, RowError]:
    """How the two readers refuse a file."""
    with pytest.raises(ServerError) as served:
        from_request(data)
    with pytest.raises(RowError) as row:
        from_row(data)
    return served.value, row.value


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(height: int = 16, width: int = 24) -> np.ndarray:
    """A picture of 8-bit colours, all different at its corners."""
    rng = np.random.default_rng(7)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def corner(channels: int, hidden: int, shown: int) -> np.ndarray:
    """[16, 16, channels]: `shown` everywhere but in a corner of 5 x 5."""
    samples = np.full((16, 16, channels), shown)
    samples[:5, :5] = hidden
    return samples[..., 0] if channels == 1 else samples


def white_with_clear_black() -> dict[str, bytes]:
    """Files that every viewer shows white, with a corner that is black to who ignores alpha."""
    coloured = np.full((16, 16, 4), 255, np.uint8)
    coloured[:5, :5] = 0
    picture = Image.fromarray(coloured)
    clear_second = (b"tRNS", b"\xff\x00")
    colours = (b"PLTE", b"\xff\xff\xff\0\0\0")
    two = corner(1, 1, 0)
    black = np.where(corner(1, 1, 0) == 1, 0, 1)
    return {
        "rgba": saved(picture, "PNG"),
        "la": saved(picture.convert("LA"), "PNG"),
        "palette": png(two, PALETTE, before=[colours, clear_second]),
        "palette-of-2-bits": png(two, PALETTE, 2, before=[colours, clear_second]),
        "palette-alpha": png(two, PALETTE, before=[colours, (b"tRNS", b"\xfe\x00")]),
        "grey": png(corner(1, 0, 255), GREY, before=[(b"tRNS", b"\0\0")]),
        "grey-of-1-bit": png(black, GREY, 1, before=[(b"tRNS", b"\0\0")]),
        "grey-of-2-bits": png(black * 3, GREY, 2, before=[(b"tRNS", b"\0\0")]),
        "grey-of-4-bits": png(black * 15, GREY, 4, before=[(b"tRNS", b"\0\0")]),
        "grey-of-16-bits": png(corner(1, 7, 65535), GREY, 16, before=[(b"tRNS", b"\0\7")]),
        "colours": png(corner(3, 0, 255), COLOURS, before=[(b"tRNS", bytes(6))]),
        "grey-alpha-of-16-bits": png(corner(2, 0, 65535), GREY_ALPHA, 16),
        "rgba-of-16-bits": png(corner(4, 0, 65535), COLOURS_ALPHA, 16),
        "webp": saved(picture, "WEBP", lossless=True, exact=True),
    }


HIDDEN = white_with_clear_black()


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_transparent_is_white(read: Reader, name: str) -> None:
    assert read(HIDDEN[name]).min() >= 254


@pytest.mark.parametrize("step", [1, 2])
def test_a_transparent_grey_of_few_bits_is_found(read: Reader, step: int) -> None:
    """Of 2 bits, 1 and 2 are 85 and 170 of 255."""
    found = read(png(corner(1, step, 0), GREY, 2, before=[(b"tRNS", bytes([0, step]))]))
    assert (found[:5, :5] == 255).all()
    assert (found[5:] == 0).all()


def test_half_transparent_is_half_white(read: Reader) -> None:
    samples = np.zeros((16, 16, 4), np.uint8)
    samples[..., 3] = 128
    assert np.unique(read(png(samples, COLOURS_ALPHA))).tolist() == [127]


def test_a_transparent_colour_behind_the_pixels_counts_for_nothing(read: Reader) -> None:
    """Viewers read it in front of the pixels alone."""
    late = png(corner(3, 0, 255), COLOURS, after=[(b"tRNS", bytes(6))])
    assert (read(late)[:5, :5] == 0).all()


def test_opaque_pixels_are_not_touched(read: Reader) -> None:
    pixels = plain()
    opaque = Image.fromarray(pixels).convert("RGBA")
    for data in (
        saved(Image.fromarray(pixels), "PNG"),
        saved(opaque, "PNG"),
        saved(opaque, "WEBP", lossless=True),
        saved(opaque, "PNG", icc_profile=srgb_profile()),
        png(pixels.astype(int) * 257, COLOURS, 16),
    ):
        assert np.array_equal(read(data), pixels)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of stored pixels."""
    flips: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p),
    }
    return flips[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_upright(read: Reader, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(plain())
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(Image.open(io.BytesIO(saved(picture, kind, **options))).convert("RGB"))
    found = read(saved(picture, kind, exif=exif, **options))
    assert np.array_equal(found, turned(stored, orientation))


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_is_none_turns_nothing(read: Reader, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(read(saved(Image.fromarray(plain()), "PNG", exif=exif)), plain())


def test_exif_that_cannot_be_read_turns_nothing(read: Reader) -> None:
    data = png(plain(), COLOURS, before=[(b"eXIf", b"MM\0*\xff\xff\xff\xff\0")])
    assert np.array_equal(read(data), plain())


def test_an_orientation_of_xmp_alone_turns_nothing(read: Reader) -> None:
    """Browsers do not know it; Pillow would turn the image."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    picture = Image.fromarray(plain())
    assert read(saved(picture, "WEBP", lossless=True, xmp=xmp)).shape == plain().shape


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_profile_that_swaps_channels_is_followed(read: Reader, kind: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    found = read(saved(red, kind, icc_profile=swapped_profile(), **options))
    assert np.abs(found.astype(int) - (0, 0, 255)).max() <= 4


def test_a_profile_goes_with_transparency_and_palettes(read: Reader) -> None:
    swapped = swapped_profile()
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 5, 5))
    palette = Image.new("RGB", (16, 16), (255, 0, 0)).quantize(4)
    found = read(saved(clear, "PNG", icc_profile=swapped)).astype(int)
    assert (found[:5, :5] == 255).all()
    assert np.abs(found[5:] - (0, 0, 255)).max() <= 4
    found = read(saved(palette, "PNG", icc_profile=swapped)).astype(int)
    assert np.abs(found - (0, 0, 255)).max() <= 4


def test_a_profile_of_srgb_leaves_every_pixel(read: Reader) -> None:
    picture = Image.fromarray(plain())
    assert np.array_equal(read(saved(picture, "PNG", icc_profile=srgb_profile())), plain())
    grey = picture.convert("L")
    for profile in (srgb_profile(), grey_profile()):
        found = read(saved(grey, "PNG", icc_profile=profile))
        assert np.array_equal(found, np.asarray(grey.convert("RGB")))


def test_profiles_that_cannot_be_followed_are_refused() -> None:
    picture = Image.fromarray(plain())
    for profile in (b"no profile", grey_profile(), renamed(srgb_profile(), {}, b"CMYK")):
        served, row = refusal(saved(picture, "PNG", icc_profile=profile))
        assert (served.status, served.code) == (415, "unsupported_image")
        assert row.reason == "undecodable_image"
        assert "profile" in served.message
        assert "sRGB" in row.message
    empty = renamed(srgb_profile(), {b"rXYZ": b"xxxx"})
    assert "cannot be applied" in refusal(saved(picture, "PNG", icc_profile=empty))[0].message


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60)])
def test_cmyk_is_converted(read: Reader, colour: tuple[int, int, int]) -> None:
    inks = Image.new("RGB", (16, 16), colour).convert("CMYK")
    found = read(saved(inks, "JPEG", quality=95)).astype(int)
    assert np.abs(found - colour).max() <= 4


def test_grey_of_16_bits_is_scaled(read: Reader) -> None:
    samples = np.full((16, 16), 1000)
    samples[8:] = 40_000
    samples[15] = 65_535
    found = read(png(samples, GREY, 16))
    assert [found[row, 3].tolist() for row in (0, 8, 15)] == [[3] * 3, [156] * 3, [255] * 3]
    same = np.repeat(samples[..., None], 3, axis=-1)
    assert np.array_equal(read(png(same, COLOURS, 16)), found)


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 100_000))


SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
OTHER_PRIMARIES = (31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000)


def primaries(values: tuple[int, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *values)


@pytest.mark.parametrize("kind", [GREY, COLOURS])
def test_gamma_is_applied(read: Reader, kind: int) -> None:
    samples = np.full((16, 16, 3) if kind == COLOURS else (16, 16), 128)
    assert set(np.unique(read(png(samples, kind, before=[gamma(1.0)])))) == {188}
    for same in ([gamma(0.45455)], [gamma(0.0)], [gamma(1.0), (b"sRGB", b"\0")]):
        same = sorted(same, key=lambda item: item[0] != b"sRGB")
        assert set(np.unique(read(png(samples, kind, before=same)))) == {128}


@pytest.mark.parametrize("value", [0.00015, 0.29, 1.01, 20.0])
def test_a_gamma_that_makes_equal_colours_different_is_refused(value: float) -> None:
    samples = np.full((16, 16), 254)
    samples[:5, :5] = 255
    assert "gamma" in refusal(png(samples, GREY, before=[gamma(value)]))[1].message


def test_other_primary_colours_are_refused(read: Reader) -> None:
    assert np.array_equal(
        read(png(plain(), COLOURS, before=[gamma(0.45455), primaries(SRGB_PRIMARIES)])), plain()
    )
    served, _ = refusal(png(plain(), COLOURS, before=[primaries(OTHER_PRIMARIES)]))
    assert "cHRM" in served.message
    named = [(b"sRGB", b"\0"), primaries(OTHER_PRIMARIES)]
    assert np.array_equal(read(png(plain(), COLOURS, before=named)), plain())
    grey = png(plain()[..., 0], GREY, before=[primaries(OTHER_PRIMARIES)])
    assert np.array_equal(read(grey)[..., 0], plain()[..., 0])


def test_colours_of_cicp_are_refused_unless_they_are_srgb(read: Reader) -> None:
    assert np.array_equal(read(png(plain(), COLOURS, before=[(b"cICP", b"\1\r\0\1")])), plain())
    assert "cICP" in refusal(png(plain(), COLOURS, before=[(b"cICP", b"\x09\x10\0\1")]))[0].message


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    served, _ = refusal(png(corner(3, 0, 65535), COLOURS, 16, before=[(b"tRNS", bytes(6))]))
    assert "16-bit" in served.message


def frames(kind: str) -> bytes:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))
    return saved(first, kind, save_all=True, append_images=[second], duration=100)


def hidden_default_image() -> bytes:
    """An animation of one frame whose default image viewers of animations never show."""
    animated = frames("PNG")
    control = animated.index(b"fcTL") - 4
    return animated[:control] + animated[control + 38 :]


@pytest.mark.parametrize("data", [frames("PNG"), frames("WEBP"), hidden_default_image()])
def test_animations_are_refused(data: bytes) -> None:
    served, row = refusal(data)
    assert (served.status, served.code) == (415, "unsupported_image")
    assert "animated" in served.message
    assert "one frame" in row.message


def test_the_preview_of_a_photograph_is_no_animation(read: Reader) -> None:
    """Cameras put further pictures behind a JPEG; every viewer shows the first."""
    first, preview = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (8, 8), "black")
    data = saved(first, "MPO", save_all=True, append_images=[preview])
    assert read(data).min() >= 250


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000"])
def test_one_list_of_formats(kind: str) -> None:
    served, row = refusal(saved(Image.new("RGB", (16, 16)), kind))
    assert (served.status, served.code) == (415, "unsupported_image")
    assert "neither PNG, JPEG nor WebP" in row.message


def test_size_is_judged_before_pixels_are_decoded() -> None:
    data = png(plain(), COLOURS)
    cut = data[: data.index(b"IDAT") + 8]
    for limits in (
        replace(DEFAULT_LIMITS, pixels=16 * 24 - 1),
        replace(DEFAULT_LIMITS, side=23),
    ):
        with pytest.raises(ImageError) as caught:
            decode_image(cut, limits)
        assert caught.value.reason == "pixels"
    with pytest.raises(ImageError) as caught:
        decode_image(cut)
    assert caught.value.reason == "damaged"
    seen = []
    decode_image(data, check_size=lambda width, height: seen.append((width, height)))
    assert seen == [(24, 16)]


@pytest.mark.parametrize("kind", ["VP8X", "VP8L", "VP8"])
def test_a_webp_is_judged_before_its_canvas_is_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(plain())
    options: dict[str, dict[str, Any]] = {
        "VP8X": {"exif": Image.Exif(), "icc_profile": srgb_profile()},
        "VP8L": {"lossless": True},
        "VP8": {"lossless": False},
    }
    data = saved(picture, "WEBP", **options[kind])
    assert data[12:16].strip() == kind.encode()
    limits = replace(DEFAULT_LIMITS, pixels=16 * 24)
    assert decode_image(data, limits).size == (24, 16)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for smaller in (replace(limits, pixels=16 * 24 - 1), replace(limits, side=23)):
        with pytest.raises(ImageError) as caught:
            decode_image(data, smaller)
        assert caught.value.reason == "pixels"


def test_bytes_are_counted_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(plain(), COLOURS))
    limits = replace(DEFAULT_LIMITS, bytes=path.stat().st_size)
    assert read_image_file(path, limits).size == (24, 16)
    with pytest.raises(ImageError, match="bytes") as caught:
        read_image_file(path, replace(limits, bytes=limits.bytes - 1))
    assert caught.value.reason == "bytes"
    with pytest.raises(ImageError, match="cannot be read"):
        read_image_file(tmp_path / "gone.png")


def test_the_limits_of_requests_and_rows_are_the_same() -> None:
    limits = MediaLimits()
    assert (limits.image_pixels, limits.max_side) == (DEFAULT_LIMITS.pixels, DEFAULT_LIMITS.side)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_pictures_in_memory(mode: str) -> None:
    grey = Image.fromarray(plain()[..., 0])
    wide = Image.fromarray(plain()[..., 0].astype(np.uint16) * 257)
    picture = {"I;16": wide, "I": wide.convert("I")}.get(mode) or grey.convert(mode)
    found = as_rgb(picture)
    assert (found.mode, found.size) == ("RGB", grey.size)
    if mode != "1":
        assert np.abs(np.asarray(found).astype(int) - plain()[..., :1]).max() <= 2


@pytest.mark.parametrize("mode", ["LA", "RGBA", "RGBa", "P"])
def test_transparent_pictures_in_memory_are_white(mode: str) -> None:
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture = clear.quantize(4) if mode == "P" else clear.convert(mode)
    assert np.asarray(as_rgb(picture)).min() == 255
