"""A pool of rendered scenes for training, made by all cores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purifier.lab.scenes import KINDS, SIZE, ItemPictures, Scene, Split, questions, to_jpeg


@dataclass(frozen=True)
class Pool:
    """Scenes, their pixels, and a question of every kind about each.

    Attributes:
        pixels: uint8 [n, SIZE, SIZE, 3], as they come out of their JPEG.
        scenes: n scenes.
        pairs: (question, answer) for every scene and kind, row-major.
    """

    pixels: NDArray[np.uint8]
    scenes: Sequence[Scene]
    pairs: Sequence[tuple[str, str]]


def render_pool(split: Split, n: int, *, seed: int, workers: int) -> Pool:
    """Renders `n` scenes; the same seed gives the same pool whatever the workers."""
    chunk = 500
    jobs = [
        (split, min(chunk, n - start), seed * 1_000_003 + start) for start in range(0, n, chunk)
    ]
    pixels: list[NDArray[np.uint8]] = []
    scenes: list[Scene] = []
    pairs: list[tuple[str, str]] = []
    with ProcessPoolExecutor(workers) as executor:
        for part in executor.map(_render_chunk, jobs):
            pixels.append(part.pixels)
            scenes += part.scenes
            pairs += part.pairs
    return Pool(np.concatenate(pixels), scenes, pairs)


def _render_chunk(job: tuple[Split, int, int]) -> Pool:
    split, n, seed = job
    pictures = ItemPictures(split)
    rng = np.random.default_rng(seed)
    pixels = np.empty((n, SIZE, SIZE, 3), np.uint8)
    scenes: list[Scene] = []
    pairs: list[tuple[str, str]] = []
    for row in range(n):
        scene = pictures.draw_scene(rng)
        with Image.open(io.BytesIO(to_jpeg(pictures.render(scene)))) as image:
            pixels[row] = np.asarray(image)
        scenes.append(scene)
        pairs += [(qa.question, qa.answer) for qa in questions(scene, rng)]
    assert len(pairs) == n * len(KINDS)
    return Pool(pixels, scenes, pairs)
