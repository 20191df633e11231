"""Fashion-MNIST's own files, a model with the demo's views, and scenes that need no files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from purifier.lab.demo_model import TINY_TEXT, TINY_VISION, VISION, write_random_checkpoint
from purifier.lab.pool import Pool
from purifier.lab.scenes import COLOURS, DEBIAN_FOLDER, ITEMS, SIZE, Scene, questions

VIEWS = {name: VISION[name] for name in ("image_size", "patch_size")}


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the four files; skips the test where the package is not installed."""
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    return DEBIAN_FOLDER


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, narrow, with views and patches of the demo's size."""
    path = tmp_path_factory.mktemp("models") / "base"
    write_random_checkpoint(path, seed=3, vision=TINY_VISION | VIEWS, text=TINY_TEXT)
    return path


def some_scenes(n: int, seed: int = 0) -> Sequence[Scene]:
    """Scenes that are described but not drawn."""
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(n):
        first, second = rng.choice(list(COLOURS), size=2, replace=False)
        item = int(rng.integers(len(ITEMS)))
        scenes.append(Scene(0, item, str(first), str(second), int(rng.integers(1000))))
    return scenes


def some_pool(n: int, seed: int = 0) -> Pool:
    """Random pixels with questions."""
    rng = np.random.default_rng(seed)
    scenes = some_scenes(n, seed)
    pixels = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    pairs = [(qa.question, qa.answer) for scene in scenes for qa in questions(scene, rng)]
    return Pool(pixels, scenes, pairs)
