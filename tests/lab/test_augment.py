"""Random masking in training, and the views that training makes without the image path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from purifier.lab.augment import (
    CELLS,
    erase_rectangles,
    fill_random_cells,
    mask_random_tokens,
    views_of,
)
from purifier.lab.scenes import SIZE
from purifier.mdlm.llada_v import LladaV


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(n: int, side: int = SIZE) -> Tensor:
    """Whole levels, and no pixel that has its scene's mean colour."""
    levels = torch.randint(0, 100, (n, 3, side, side), generator=generator(1)).float()
    return torch.where(torch.rand(n, 1, side, side, generator=generator(2)) < 0.5, levels, 255.0)


def test_only_whole_cells_are_filled_and_no_more_than_asked() -> None:
    before = scenes(200)
    after = fill_random_cells(before, generator(), highest=0.3)
    changed = (after != before).any(1)
    side = SIZE // CELLS
    cells = changed.unflatten(1, (CELLS, side)).unflatten(3, (CELLS, side)).float().mean((2, 4))
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    count = cells.sum((1, 2))
    assert 25 < int(count.max()) <= 30 == 0.3 * CELLS**2
    # Half of the scenes, within five standard deviations.
    assert abs(int((count > 0).sum()) - 100) < 36
    mean = before.mean(dim=(2, 3), keepdim=True).round().expand_as(before)
    where = changed[:, None].expand_as(before)
    assert torch.equal(after[where], mean[where])
    assert torch.equal(after, fill_random_cells(before, generator(), highest=0.3))


def test_an_erased_scene_has_one_rectangle_of_one_colour() -> None:
    before = scenes(100)
    after = erase_rectangles(before, generator())
    erased = 0
    for one, other in zip(before, after, strict=True):
        changed = (one != other).any(0)
        if not changed.any():
            continue
        erased += 1
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        part = other[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert len(part.flatten(1).unique(dim=1).T) == 1
        sizes = torch.tensor(part.shape[1:]) / SIZE
        assert bool(((sizes >= 0.09) & (sizes <= 0.36)).all())
    assert abs(erased - 50) < 25


def test_masked_tokens_become_the_mask_embedding() -> None:
    visual = torch.randn(200, 135, 8, generator=generator(3))
    mask = torch.randn(8, generator=generator(4))
    masked = mask_random_tokens(visual, mask, generator(), highest=0.5)
    rows = (masked == mask).all(-1)
    assert torch.equal(masked[~rows], visual[~rows])
    share = rows.float().mean(1)
    # A row's share is binomial around a ratio of at most one half.
    assert float(share.max()) < 0.5 + 5 * (0.25 / 135) ** 0.5
    assert float(share.max()) > 0.4
    assert abs(int((share > 0).sum()) - 100) < 36


@pytest.mark.parametrize("smooth", [True, False])
def test_views_are_those_of_the_image_path(small_checkpoint: Path, smooth: bool) -> None:
    """Two implementations of bicubic resizing agree within rounding."""
    mdlm = LladaV.load(small_checkpoint)
    side = mdlm.config.vision.image_size
    rng = np.random.default_rng(0)
    low = (12, 12, 3) if smooth else (2 * side, 2 * side, 3)
    image = Image.fromarray(rng.integers(0, 256, low, dtype=np.uint8))
    image = image.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    expected = mdlm.prepare_image(image).pixels
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    (found,) = views_of(pixels[None], side)
    assert found.shape == expected.shape
    levels = (found - expected).abs() * 127.5
    # The tiles are cut, not resized.
    assert float(levels[1:].max()) < 1e-3
    assert float(levels[0].max()) < 2
    assert float(levels[0].mean()) < 0.5
