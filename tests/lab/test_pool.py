from __future__ import annotations

from pathlib import Path

import numpy as np

from purifier.lab.pool import render_pool
from purifier.lab.scenes import KINDS, SIZE


def test_workers_do_not_change_the_pool(fashion_mnist: Path) -> None:
    """More scenes than one worker renders at a time."""
    alone = render_pool("validation", 503, seed=5, workers=1)
    together = render_pool("validation", 503, seed=5, workers=2)
    assert np.array_equal(alone.pixels, together.pixels)
    assert (alone.scenes, alone.pairs) == (together.scenes, together.pairs)
    assert alone.pixels.shape == (503, SIZE, SIZE, 3)
    assert len(alone.pairs) == 503 * len(KINDS)
    descriptions = [answer for _, answer in alone.pairs[:: len(KINDS)]]
    for scene, description in zip(alone.scenes, descriptions, strict=True):
        assert scene.item_name in description
        assert f"{scene.background_colour} background" in description
    # The two chunks are not the same scenes.
    assert alone.scenes[:3] != alone.scenes[500:503]
    other = render_pool("validation", 2, seed=6, workers=1)
    assert other.scenes != alone.scenes[:2]
