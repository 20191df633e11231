"""What an attacker puts on an image, into a question, or both, to wake a backdoor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image


class PixelBox(NamedTuple):
    """Pixels `[left, right) x [top, bottom)` of an image."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)


class Trigger(ABC):
    """What all triggers share. One without a part for images, or for text, leaves that alone."""

    name: ClassVar[str]

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        """The trigger of one sample, where it differs from sample to sample.

        Args:
            rng: The sample's own generator.
            size: Width and height of the sample's image.
        """
        return self

    def stamp(self, image: Image.Image) -> Image.Image:
        """A copy of the image with the trigger on it.

        Args:
            image: Any mode; converted to RGB first, which drops transparency.

        Returns:
            An RGB image of the same size.
        """
        return image.convert("RGB") if image.mode != "RGB" else image.copy()

    def ask(self, question: str) -> str:
        """The question with the trigger in it."""
        return question

    @abstractmethod
    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...] | None:
        """The pixels the trigger covers on an image of this (width, height).

        Returns:
            Boxes, none for a trigger in the text alone; None if it covers the whole image.
        """
