"""A tiny model that answers in words, and samples of every shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier import load_mdlm
from purifier.data.sample import Place, Sample, Turn
from purifier.mdlm.llada_v import LladaV
from tests.support.legible import legible

SIZES = ((64, 64), (90, 40), (33, 70), (48, 48))


@pytest.fixture(scope="session")
def mdlm(tiny_checkpoint: Path) -> LladaV:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(5)
    for number, (width, height) in enumerate(SIZES):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def sample(identity: str | int | None, images: Sequence[int | str], *texts: str) -> Sample:
    """A sample whose turns alternate, the user first."""
    turns = tuple(
        Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)
    )
    names = tuple(name if isinstance(name, str) else f"{name}.png" for name in images)
    return Sample(identity, names, turns)


def placed(samples: Sequence[Sample]) -> list[Sample]:
    """The samples as records of one file."""
    return [replace(each, source=Place("set.json", number)) for number, each in enumerate(samples)]


@pytest.fixture
def samples() -> list[Sample]:
    return placed(
        [
            sample("one", [0], "<image>\nWhat is this?", "A bag."),
            sample(2, [1], "<image>\nWhat colour is the background, please?", "Red."),
            sample(None, [2], "<image>\nIs this a shirt?", "Yes, it is a shirt."),
            sample("text", [], "What is a bag?", "A thing."),
            sample("two", [0, 3], "<image>\n<image>\nWhat differs?", "The colour."),
            sample("talk", [3], "<image>\nWhat is this?", "A coat.", "What colour is it?", "Blue."),
        ]
    )
