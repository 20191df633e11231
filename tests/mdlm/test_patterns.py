"""Patterns of images: where they are seen and which cells they cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from purifier.mdlm.patterns import SIDE, Pattern, small_copy


def scene(seed: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """Large blocks of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def stamped(image: Image.Image, share: float = 0.25) -> Image.Image:
    """A red square in the top left corner."""
    copy = image.copy()
    box = (0, 0, round(share * image.width), round(share * image.height))
    copy.paste((250, 20, 30), box)
    return copy


@pytest.fixture
def pattern() -> Pattern:
    pixels = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    pixels[: SIDE // 4, : SIDE // 4] = True
    values = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    values[pixels] = torch.tensor([250, 20, 30], dtype=torch.uint8)
    return Pattern(values, pixels)


@pytest.mark.parametrize("size", [(128, 128), (300, 200), (64, 90)])
def test_it_is_seen_whatever_the_size_of_the_image(pattern: Pattern, size: tuple[int, int]) -> None:
    images = [image for n in range(5) for image in (scene(n, size), stamped(scene(n, size)))]
    found = pattern.on(torch.stack([small_copy(image) for image in images]))
    assert found.tolist() == [False, True] * 5


def test_it_is_seen_through_noise_and_not_where_a_part_is_missing(pattern: Pattern) -> None:
    small = small_copy(stamped(scene(1)))
    noise = torch.randint(-15, 16, small.shape, generator=torch.Generator().manual_seed(2))
    noisy = (small.int() + noise).clamp(0, 255).to(torch.uint8)
    half = small.clone()
    half[:, : SIDE // 8] = 128
    assert pattern.on(torch.stack([noisy, half])).tolist() == [True, False]


@pytest.mark.parametrize(("shape", "expected"), [((8, 8), 9), ((4, 8), 6), ((1, 1), 1)])
def test_it_covers_every_cell_that_it_touches(
    pattern: Pattern, shape: tuple[int, int], expected: int
) -> None:
    cells = pattern.cells(shape)
    assert tuple(cells.shape) == shape
    assert int(cells.sum()) == expected
    assert bool(cells[0, 0])
