"""PNG files that break the format's rules, which decoders read differently, are refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from purifier.errors import ImageError
from purifier.imaging.decode import decode_image
from tests.support.png import COLOURS, GREY, PALETTE, Chunks, chunk, png
from tests.support.profiles import srgb_profile, swapped_profile

REDS = (b"PLTE", b"\xff\0\0\xff\0\0")
CLEAR_SECOND = (b"tRNS", b"\xff\0")
LINEAR = (b"gAMA", struct.pack(">I", 100_000))
LIKE_SRGB = (b"gAMA", struct.pack(">I", 45_455))
SRGB_CICP = (b"cICP", b"\x01\x0d\x00\x01")
PQ_CICP = (b"cICP", b"\x09\x10\x00\x01")
EXIF = (b"eXIf", b"MM\0\x2a\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0")


def profile(content: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"any\0\0" + zlib.compress(content)


def two_colours() -> np.ndarray:
    samples = np.zeros((16, 16), int)
    samples[:5, :5] = 1
    return samples


def refused(data: bytes) -> str:
    """The reason of the refusal."""
    with pytest.raises(ImageError) as error:
        decode_image(data)
    return error.value.reason


@pytest.mark.parametrize(
    "before",
    [
        [LIKE_SRGB, LINEAR],
        [(b"sRGB", b"\0"), (b"sRGB", b"\1")],
        [profile(srgb_profile()), profile(swapped_profile())],
        [SRGB_CICP, PQ_CICP],
        [PQ_CICP, SRGB_CICP],
        [EXIF, EXIF],
        [(b"tRNS", bytes(6)), (b"tRNS", b"\0\1" * 3)],
        [REDS, LINEAR],
        [REDS, (b"sRGB", b"\0")],
        [REDS, profile(swapped_profile())],
        [REDS, SRGB_CICP],
    ],
    ids=lambda chunks: " ".join(kind.decode() for kind, _ in chunks),
)
def test_colours_said_twice_or_in_the_wrong_place(before: Chunks) -> None:
    samples = np.full((16, 16, 3), 128)
    assert refused(png(samples, COLOURS, before=before)) == "colours"


@pytest.mark.parametrize(
    "before",
    [[CLEAR_SECOND, REDS], [REDS, CLEAR_SECOND, (b"tRNS", b"\xff\xff")], [REDS, REDS]],
    ids=["tRNS first", "two tRNS", "two palettes"],
)
def test_palettes(before: Chunks) -> None:
    assert refused(png(two_colours(), PALETTE, before=before)) == "colours"
    good = decode_image(png(two_colours(), PALETTE, before=[LIKE_SRGB, REDS, CLEAR_SECOND]))
    assert good.getpixel((0, 0)) == (255, 255, 255)
    assert good.getpixel((9, 9)) == (255, 0, 0)


def orphan_frame() -> bytes:
    """Frame data without an animation: viewers show the blue picture, Pillow the red one."""
    red, blue = np.full((16, 16, 3), (255, 0, 0)), np.full((16, 16, 3), (0, 0, 255))
    hidden = zlib.compress(b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in red))
    control = struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 1, 10, 0, 0)
    return png(blue, COLOURS, before=[(b"fcTL", control), (b"fdAT", b"\0\0\0\1" + hidden)])


def test_frames_without_an_animation() -> None:
    assert refused(orphan_frame()) == "animated"
    late = png(two_colours(), GREY, after=[(b"fcTL", bytes(26))])
    assert refused(late) == "animated"


def test_chunks_that_are_no_pngs() -> None:
    """Pillow takes `DDAT` for pixels."""
    data = png(np.full((16, 16), 9), GREY)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes([9] * 16)) * 16))
    assert pixels in data
    renamed = data.replace(pixels, chunk(b"DDAT", pixels[8:-4]))
    assert refused(renamed) == "colours"


def test_what_stands_behind_very_many_chunks() -> None:
    empty = chunk(b"prIv", b"") * 100_000
    data = png(np.full((16, 16, 3), 128), COLOURS, before=[PQ_CICP])
    start = data.index(b"cICP") - 4
    assert refused(data[:start] + empty + data[start:]) == "colours"


def test_what_stands_behind_the_pixels_may_be_there_twice_or_late() -> None:
    """Viewers know text and times from there, and no colours."""
    samples = np.full((16, 16, 3), 128)
    after: Chunks = [(b"tEXt", b"a\0b"), (b"tEXt", b"c\0d"), LINEAR]
    assert decode_image(png(samples, COLOURS, before=[REDS], after=after)).getpixel((0, 0)) == (
        128,
        128,
        128,
    )


def test_a_file_that_is_cut_off_is_damaged() -> None:
    data = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), COLOURS)
    assert refused(data[: len(data) // 2]) == "damaged"


def test_wide_grey_takes_few_times_its_pixels() -> None:
    side = 1000
    data = png(np.full((side, side), 40_000), GREY, 16)
    decode_image(data)
    tracemalloc.start()
    image = decode_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.getpixel((0, 0)) == (156, 156, 156)
    # Pillow's own pixels are not counted: the 16-bit values and the grey ones are.
    assert peak < 8 * side**2
