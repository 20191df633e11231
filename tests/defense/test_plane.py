"""Carrying values onto the image plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from purifier.defense.fill import cell_edges, fill_cells, filled
from purifier.defense.plane import (
    Raster,
    carry_mass,
    carry_share,
    grid_values,
    plane_shape,
    pool,
    token_rasters,
    view_rasters,
)
from purifier.mdlm.base import Box, TokenGrid
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import picture

WHOLE = Box(0.0, 0.0, 1.0, 1.0)

sizes = st.integers(1, 9)
edges = st.floats(0.0, 0.6), st.floats(0.05, 0.4)


@st.composite
def inner_boxes(draw: st.DrawFn) -> Box:
    left, top = draw(edges[0]), draw(edges[0])
    return Box(left, top, left + draw(edges[1]), top + draw(edges[1]))


@given(inner_boxes(), sizes, sizes, sizes, sizes, st.integers(0, 1000))
def test_mass_inside_the_image_is_kept(
    box: Box, rows: int, columns: int, plane_rows: int, plane_columns: int, seed: int
) -> None:
    values = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    plane = carry_mass([values], [Raster(rows, columns, box)], (plane_rows, plane_columns))
    torch.testing.assert_close(plane.sum(), values.double().sum())


def test_mass_on_padding_is_lost() -> None:
    padded = Raster(2, 2, Box(0.0, -0.5, 1.0, 1.5))
    plane = carry_mass([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], [padded], (1, 2))
    torch.testing.assert_close(plane, torch.tensor([[2.0, 3.0]], dtype=torch.float64))


def test_equal_grids_are_copied() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(carry_mass([values], [Raster(3, 5, WHOLE)], (3, 5)), values)


@given(st.lists(inner_boxes(), min_size=1, max_size=3), sizes, sizes)
def test_shares_stay_between_zero_and_one(boxes: list[Box], rows: int, columns: int) -> None:
    rasters = [Raster(rows, columns, box) for box in boxes]
    ones = [torch.ones(rows, columns) for _ in boxes]
    share = carry_share(ones, rasters, (4, 4))
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    covered = carry_mass(ones, rasters, (4, 4)) > 1e-9
    torch.testing.assert_close(share[covered], torch.ones_like(share[covered]))


def test_share_is_the_mean_of_views() -> None:
    rasters = [Raster(1, 2, WHOLE), Raster(2, 2, WHOLE)]
    share = carry_share([torch.tensor([[1.0, 0.0]]), torch.zeros(2, 2)], rasters, (2, 2))
    expected = torch.tensor([[0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(share, expected)


def test_plane_follows_the_finest_raster() -> None:
    coarse = Raster(4, 4, WHOLE)
    fine = Raster(4, 4, Box(0.0, -0.1, 0.5, 0.5))
    assert plane_shape([coarse, fine]) == (7, 8)
    assert plane_shape([coarse, fine], size=(5, 3)) == (3, 5)


def test_newline_tokens_fall_away() -> None:
    grids = (
        TokenGrid(0, 2, 2, newline=False, box=WHOLE),
        TokenGrid(4, 2, 3, newline=True, box=WHOLE),
        TokenGrid(12, 1, 0, newline=True, box=WHOLE),
    )
    base, tiles = grid_values(torch.arange(13.0), grids)
    assert base.tolist() == [[0, 1], [2, 3]]
    assert tiles.tolist() == [[4, 5, 6], [8, 9, 10]]
    assert [(raster.rows, raster.columns) for raster in token_rasters(grids)] == [(2, 2), (2, 3)]


def test_pooling_counts_cells_of_the_image_only() -> None:
    plane = torch.zeros(4, 4, dtype=torch.float64)
    plane[0, 0] = 9.0
    pooled = pool(plane, 3)
    assert pooled[0, 0] == 9 / 4
    assert pooled[1, 1] == 1.0
    assert pooled[2:, :].sum() == 0
    assert torch.equal(pool(plane, 1), plane)
    torch.testing.assert_close(pool(torch.ones_like(plane), 9), torch.ones_like(plane))


@pytest.mark.parametrize("size", [(38, 30), (20, 52), (40, 40), (90, 31)])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_changed_region_lights_up_in_its_cells(
    mdlm: LladaV, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    """What the tower sees differently lies, carried onto the plane, where it was changed."""
    image = picture(*size)
    before = mdlm.prepare_image(image)
    assert len(before.views) > 1
    rasters = view_rasters(before, 16)
    shape = plane_shape(rasters, size)
    cells = torch.zeros(shape, dtype=torch.bool)
    rows = slice(0, 2) if not corner[1] else slice(shape[0] - 2, shape[0])
    columns = slice(0, 2) if not corner[0] else slice(shape[1] - 2, shape[1])
    cells[rows, columns] = True
    after = mdlm.prepare_image(fill_cells(image, cells))

    change = (mdlm.patch_embeddings(after) - mdlm.patch_embeddings(before)).norm(dim=-1)
    for number, raster in enumerate(rasters):
        values = [change[number].reshape(4, 4)]
        plane = carry_mass(values, [raster], shape)
        if not plane.sum():
            continue
        # The centre of what changed in this view lies within a patch of the region.
        rows_at, columns_at = torch.meshgrid(
            torch.arange(shape[0]) + 0.5, torch.arange(shape[1]) + 0.5, indexing="ij"
        )
        height, width = raster.element
        for at, mask_at, reach in (
            (rows_at, rows, height * shape[0]),
            (columns_at, columns, width * shape[1]),
        ):
            centre = float((plane * at).sum() / plane.sum())
            assert mask_at.start - reach <= centre <= mask_at.stop + reach
    plane = carry_mass([view.reshape(4, 4) for view in change], rasters, shape)
    assert bool(cells.flatten()[plane.argmax()])


@pytest.mark.parametrize("view", range(5))
def test_a_view_lights_up_its_own_part(mdlm: LladaV, view: int) -> None:
    """Base view and tiles: one patch's value goes to the cells under that patch alone."""
    prepared = mdlm.prepare_image(picture(40, 40))
    assert len(prepared.views) == 5
    rasters = view_rasters(prepared, 16)
    values = [torch.zeros(4, 4) for _ in rasters]
    values[view][1, 2] = 1.0
    plane = carry_mass(values, rasters, (8, 8))
    expected = torch.zeros(8, 8, dtype=torch.float64)
    if view == 0:
        expected[2:4, 4:6] = 0.25
    else:
        row, column = divmod(view - 1, 2)
        expected[4 * row + 1, 4 * column + 2] = 1.0
    torch.testing.assert_close(plane, expected)


def test_padded_view_of_several_images(mdlm: LladaV) -> None:
    prepared = mdlm.prepare_image(picture(40, 20), n_images=2)
    (raster,) = view_rasters(prepared, 16)
    assert (raster.box.top, raster.box.bottom) == (-0.5, 1.5)
    assert plane_shape([raster]) == (2, 4)
    values = torch.arange(16.0).reshape(4, 4)
    plane = carry_mass([values], [raster], (2, 4))
    torch.testing.assert_close(plane, values[1:3].double())


@given(st.integers(1, 60), st.integers(1, 300))
def test_cell_edges_partition_the_pixels(cells: int, length: int) -> None:
    found = cell_edges(cells, length)
    assert (found[0], found[-1]) == (0, length)
    assert found == sorted(found)
    if cells <= length:
        assert len(set(found)) == cells + 1


def test_fill_leaves_every_other_pixel() -> None:
    image = picture(13, 10)
    cells = torch.zeros(3, 4, dtype=torch.bool)
    cells[1, 2] = True
    before, after = np.asarray(image), np.asarray(fill_cells(image, cells))
    top, left = cell_edges(3, 10), cell_edges(4, 13)
    inside = np.zeros((10, 13), dtype=bool)
    inside[top[1] : top[2], left[2] : left[3]] = True
    assert (after[~inside] == before[~inside]).all()
    assert (after[inside] == np.asarray(filled(image))[0, 0]).all()


def test_a_black_image_is_not_filled_with_black() -> None:
    assert int(np.asarray(filled(Image.new("RGB", (8, 8))))[0, 0].min()) > 100
    assert filled(Image.new("RGB", (8, 8), (200, 10, 60))).getpixel((3, 3)) == (200, 10, 60)
