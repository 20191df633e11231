"""Which visual tokens a window touches."""

from __future__ import annotations

import pytest
import torch

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import make_site
from purifier.defense.windows import touched_tokens, windows
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import LEVELS


def test_touched_tokens_share_an_area_with_a_window(requests: list[Inputs]) -> None:
    for request in requests:
        for image in request.images:
            cells = windows((7, 6))
            found = touched_tokens(cells, image.grids)
            assert found.shape == (len(cells), image.n_tokens)
            for grid in image.grids:
                width = grid.columns + int(grid.newline)
                box = grid.box
                height_of = (box.bottom - box.top) / grid.rows
                for place in range(grid.rows * width):
                    row, column = divmod(place, width)
                    expected = torch.zeros(len(cells), dtype=torch.bool)
                    if column < grid.columns:
                        width_of = (box.right - box.left) / grid.columns
                        top, left = box.top + row * height_of, box.left + column * width_of
                        for y in range(7):
                            for x in range(6):
                                tall = min(top + height_of, (y + 1) / 7) - max(top, y / 7)
                                wide = min(left + width_of, (x + 1) / 6) - max(left, x / 6)
                                if tall > 1e-9 and wide > 1e-9:
                                    expected |= cells[:, y, x]
                    assert torch.equal(found[:, grid.offset + place], expected)


@pytest.mark.parametrize("level", LEVELS)
def test_regions_cover_every_unit_that_can_be_seen(
    mdlm: LladaV, requests: list[Inputs], level: str
) -> None:
    site = make_site(mdlm, requests, MaskingConfig(level=level, ranker="random"))  # type: ignore[arg-type]
    images = [image for request in requests for image in request.images]
    for number, image in enumerate(images):
        regions = site.on(number, windows(site.plane(number)))
        assert regions.units.shape[1:] == site.shapes[number]
        assert regions.tokens.shape[1:] == (image.n_tokens,)
        assert len(regions.units) == len(regions.tokens) > 4
        newlines = torch.zeros(image.n_tokens, dtype=torch.bool)
        for grid in image.grids:
            if grid.newline:
                width = grid.columns + 1
                newlines[grid.offset + grid.columns : grid.offset + grid.length : width] = True
        covered = regions.units.any(0)
        if level == "token":
            assert torch.equal(regions.units, regions.tokens)
            assert torch.equal(covered, ~newlines)
        else:
            assert bool(covered.all())
