from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from purifier.evaluation.oracles import fill_regions, trigger_tokens
from purifier.lab.triggers import CornerPatch, PixelBox
from purifier.mdlm.base import Box, ImageInput, TokenGrid
from purifier.mdlm.registry import load_mdlm


def image_input(size: tuple[int, int], *grids: TokenGrid) -> ImageInput:
    n_tokens = sum(grid.length for grid in grids)
    return ImageInput(Image.new("RGB", size), torch.zeros(0), (), grids, n_tokens)


WHOLE = Box(0, 0, 1, 1)


def test_tokens_of_every_grid_that_touches_the_region() -> None:
    base = TokenGrid(0, 2, 2, newline=False, box=WHOLE)
    tiles = TokenGrid(4, 4, 4, newline=True, box=WHOLE)
    chosen = trigger_tokens(image_input((40, 40), base, tiles), [PixelBox(0, 0, 11, 10)])
    assert chosen.nonzero().flatten().tolist() == [0, 4, 5]


def test_padding_and_lone_newlines_are_never_chosen() -> None:
    padded = TokenGrid(0, 2, 4, newline=False, box=Box(-0.5, 0, 1.5, 1))
    newline = TokenGrid(8, 1, 0, newline=True, box=WHOLE)
    chosen = trigger_tokens(image_input((40, 40), padded, newline), [PixelBox(0, 0, 40, 40)])
    assert chosen.tolist() == [False, True, True, False] * 2 + [False]


@given(
    left=st.integers(0, 30),
    top=st.integers(0, 20),
    width=st.integers(0, 12),
    height=st.integers(0, 12),
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
)
def test_chosen_cells_are_those_that_hold_pixels_of_the_region(
    left: int, top: int, width: int, height: int, rows: int, columns: int
) -> None:
    # Every cell is 12 x 12 points and every pixel a whole number of points, so that counting
    # points decides the overlap exactly.
    size = (42, 32)
    region = PixelBox(left, top, min(left + width, size[0]), min(top + height, size[1]))
    grid = TokenGrid(0, rows, columns, newline=False, box=WHOLE)
    points = np.zeros((size[1] * rows, size[0] * columns), dtype=bool)
    points[
        region.top * rows : region.bottom * rows, region.left * columns : region.right * columns
    ] = True
    expected = points.reshape(rows, size[1], columns, size[0]).any(axis=(1, 3))
    chosen = trigger_tokens(image_input(size, grid), [region])
    assert chosen.reshape(rows, columns).tolist() == expected.tolist()


def test_a_real_layout(tiny_checkpoint: Path) -> None:
    mdlm = load_mdlm(tiny_checkpoint)
    image = mdlm.prepare_image(Image.new("RGB", (64, 64)))
    region = CornerPatch(size=16, place="bottom-right").regions((64, 64))
    assert region is not None
    chosen = trigger_tokens(image, region)
    assert len(chosen) == image.n_tokens
    for grid in image.grids:
        if not grid.columns:
            continue
        own = chosen[grid.offset : grid.offset + grid.length]
        cells = own.reshape(grid.rows, -1)[:, : grid.columns]
        assert cells[-1, -1]
        assert cells.sum() == max(1, grid.rows // 4) * max(1, grid.columns // 4)
        assert not own.reshape(grid.rows, -1)[:, grid.columns :].any()


def test_filling_touches_the_region_alone() -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    filled = np.asarray(fill_regions(image, [PixelBox(3, 4, 9, 12)])).copy()
    colour = filled[4, 3]
    assert (filled[4:12, 3:9] == colour).all()
    assert np.abs(colour - pixels.mean(axis=(0, 1))).max() <= 1
    filled[4:12, 3:9] = pixels[4:12, 3:9]
    assert (filled == pixels).all()
    assert (np.asarray(image) == pixels).all()


def test_an_empty_region_chooses_nothing() -> None:
    grid = TokenGrid(0, 3, 3, newline=False, box=WHOLE)
    assert not trigger_tokens(image_input((30, 30), grid), [PixelBox(10, 10, 10, 10)]).any()
