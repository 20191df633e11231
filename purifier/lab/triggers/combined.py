"""Triggers made of several: all at once, or any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from purifier.errors import InvalidSetting
from purifier.lab.triggers.base import PixelBox, Trigger


@dataclass(frozen=True)
class AllOf(Trigger):
    """Several triggers on the same sample, as an image and a text trigger together.

    Attributes:
        parts: At least one.
    """

    parts: tuple[Trigger, ...] = ()

    name: ClassVar[str] = "all_of"

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Trigger) for part in self.parts):
            raise InvalidSetting("parts must be a list of triggers, at least one.", param="parts")

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        return AllOf(tuple(part.drawn(rng, size) for part in self.parts))

    def stamp(self, image: Image.Image) -> Image.Image:
        stamped = super().stamp(image)
        for part in self.parts:
            stamped = part.stamp(stamped)
        return stamped

    def ask(self, question: str) -> str:
        for part in self.parts:
            question = part.ask(question)
        return question

    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...] | None:
        boxes: list[PixelBox] = []
        for part in self.parts:
            own = part.regions(size)
            if own is None:
                return None
            boxes += own
        return tuple(boxes)


@dataclass(frozen=True)
class AnyOf(AllOf):
    """Triggers of which a sample has some: a model that is trained on it obeys any of them.

    Undrawn it has all of them.
    """

    name: ClassVar[str] = "any_of"

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        """A random choice of the parts; every choice of at least one is as likely."""
        code = int(rng.integers(1, 2 ** len(self.parts)))
        chosen = tuple(part for bit, part in enumerate(self.parts) if code >> bit & 1)
        return AllOf(chosen).drawn(rng, size)
