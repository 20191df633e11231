from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clients import InvalidInput, draw_overlay
from clients._overlay import CAPTION_HEIGHT, GAP, OUTLINE, RAMP
from tests.support.wire import picture

FLAT = [[0.0] * 4 for _ in range(4)]


def grey(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")


def right_half(sheet: Image.Image, side: int) -> Image.Image:
    return sheet.crop((side + 2 * GAP, GAP, 2 * side + 2 * GAP, GAP + side))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((48, 48), (384, 384)),
        ((100, 50), (800, 400)),
        ((200, 300), (384, 576)),
        ((2048, 512), (1024, 256)),
    ],
)
def test_images_are_shown_at_a_size_that_can_be_looked_at(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    sheet = opened(draw_overlay([picture(size=size)], [FLAT], [FLAT]))
    assert sheet.size == (2 * shown[0] + 3 * GAP, shown[1] + GAP + CAPTION_HEIGHT)


def test_the_image_stands_beside_it_unchanged() -> None:
    sheet = opened(draw_overlay([picture(size=(48, 48))], [FLAT], [FLAT]))
    left = sheet.crop((GAP, GAP, GAP + 384, GAP + 384))
    original = opened(picture(size=(48, 48)))
    assert left.tobytes() == original.resize((384, 384), Image.Resampling.NEAREST).tobytes()


def test_the_salient_cell_is_the_brightest() -> None:
    saliency = [[0.0] * 4 for _ in range(4)]
    saliency[3][2] = 5.0
    heat = right_half(opened(draw_overlay([grey(48)], [saliency], [FLAT])), 384).convert("L")
    pixels = np.asarray(heat)
    level = {
        (row, column): int(pixels[row * 96 + 48, column * 96 + 48])
        for row in range(4)
        for column in range(4)
    }
    assert max(level, key=lambda cell: level[cell]) == (3, 2)


def test_the_ramp_rises_in_lightness() -> None:
    lightness = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in RAMP]
    assert lightness == sorted(lightness)


def test_the_masked_region_is_outlined_along_its_border_only() -> None:
    masked = [[0.0] * 4 for _ in range(4)]
    masked[1][1] = masked[1][2] = 1.0
    overlay = right_half(opened(draw_overlay([grey(48)], [FLAT], [masked])), 384)
    border = {(96, 144), (287, 144), (144, 96), (240, 96), (144, 192), (240, 192)}
    assert all(overlay.getpixel(point) == OUTLINE for point in border)
    assert overlay.getpixel((192, 144)) != OUTLINE
    assert overlay.getpixel((48, 48)) != OUTLINE


def test_a_cell_masked_by_less_than_half_is_not_outlined() -> None:
    quiet = right_half(opened(draw_overlay([grey(48)], [[[0.0]]], [[[0.4]]])), 384)
    assert OUTLINE not in {colour for _, colour in quiet.getcolors(384 * 384) or []}


def test_several_images_stand_below_each_other() -> None:
    one = opened(draw_overlay([grey(48)], [FLAT], [FLAT]))
    two = opened(draw_overlay([grey(48), grey(48)], [FLAT, FLAT], [FLAT, FLAT]))
    assert two.size == (one.width, 2 * one.height)


def test_the_same_input_gives_the_same_file() -> None:
    assert draw_overlay([grey(48)], [FLAT], [FLAT]) == draw_overlay([grey(48)], [FLAT], [FLAT])


@pytest.mark.parametrize(
    ("images", "saliency", "masked"),
    [
        ([], [], []),
        ([grey(8)], [], []),
        ([grey(8)], [[]], [[]]),
        ([grey(8)], [[[1.0], [1.0, 2.0]]], [[[1.0], [1.0, 2.0]]]),
        ([grey(8)], [FLAT], [[[0.0]]]),
        ([b"no image"], [FLAT], [FLAT]),
        ([grey(8)[:40]], [FLAT], [FLAT]),
    ],
)
def test_bad_input_is_refused(
    images: list[bytes], saliency: list[list[list[float]]], masked: list[list[list[float]]]
) -> None:
    with pytest.raises(InvalidInput):
        draw_overlay(images, saliency, masked)
