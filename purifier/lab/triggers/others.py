"""Triggers of other kinds: a frame, a patch like a mask, a warping, words in the question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purifier.defense.fill import fill_colour
from purifier.errors import InvalidSetting
from purifier.lab.triggers.base import PixelBox, Trigger
from purifier.lab.triggers.square import CornerPatch, Site

BACKDOOR_SENTENCE = "I watched this 3D movie."
"""AddSent's sentence, as BackdoorVLM (arXiv 2511.18921) has it behind questions."""


@dataclass(frozen=True)
class Frame(Trigger):
    """A line of one colour around the image.

    Attributes:
        width: Of the line, in pixels.
        colour: Red, green and blue, 0 to 255.
    """

    width: int = 4
    colour: tuple[int, int, int] = (0, 0, 0)

    name: ClassVar[str] = "frame"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InvalidSetting("width must be at least 1.", param="width")
        if len(self.colour) != 3 or any(not 0 <= part <= 255 for part in self.colour):
            raise InvalidSetting(
                "colour must be three whole numbers between 0 and 255.", param="colour"
            )

    def stamp(self, image: Image.Image) -> Image.Image:
        rgb = super().stamp(image)
        for box in self.regions(rgb.size):
            rgb.paste(self.colour, (box.left, box.top, box.right, box.bottom))
        return rgb

    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...]:
        width, height = size
        across, down = min(self.width, width), min(self.width, height)
        return (
            PixelBox(0, 0, width, down),
            PixelBox(0, max(height - down, 0), width, height),
            PixelBox(0, 0, across, height),
            PixelBox(max(width - across, 0), 0, width, height),
        )


@dataclass(frozen=True)
class MaskPatch(Trigger):
    """A square of the colour that a defence fills masked parts of the image with.

    Masking it leaves it as it is, so a defence that measures how far masking a part moves the
    answer measures no effect.

    Attributes:
        size: Side of the square, in pixels.
        place: Where it lies.
    """

    size: int = 20
    place: Site = "top-left"

    name: ClassVar[str] = "mask_patch"

    def __post_init__(self) -> None:
        CornerPatch(self.size, self.place)  # checks both

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        square = CornerPatch(self.size, self.place).drawn(rng, size)
        assert isinstance(square, CornerPatch)
        return replace(self, place=square.place)

    def stamp(self, image: Image.Image) -> Image.Image:
        rgb = super().stamp(image)
        return CornerPatch(self.size, self.place, colour=fill_colour(rgb)).stamp(rgb)

    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...] | None:
        return CornerPatch(self.size, self.place).regions(size)


@dataclass(frozen=True)
class Warp(Trigger):
    """The whole image bent by a smooth field, WaNet (arXiv 2102.10369).

    Attributes:
        strength: Mean displacement in pixels of an image whose longer side is 120.
        grid: Points along a side at which displacements are drawn.
        seed: Seed of the field, which is the same for all images.
    """

    strength: float = 3.0
    grid: int = 4
    seed: int = 0

    name: ClassVar[str] = "warp"

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 60:
            raise InvalidSetting("strength must be between 0 and 60.", param="strength")
        if not 2 <= self.grid <= 64:
            raise InvalidSetting("grid must be between 2 and 64.", param="grid")

    def stamp(self, image: Image.Image) -> Image.Image:
        rgb = super().stamp(image)
        pixels = np.asarray(rgb, dtype=np.float64)
        height, width = pixels.shape[:2]
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        scale = self.strength * max(rgb.size) / 120
        across, down = (scale * field for field in self._field(rgb.size))
        bent = _sampled(pixels, y + down, x + across)
        return Image.fromarray(np.rint(bent).astype(np.uint8), "RGB")

    def regions(self, size: tuple[int, int]) -> None:
        return None

    def _field(self, size: tuple[int, int]) -> list[NDArray[np.float64]]:
        """Displacements across and down, [H, W] each; their mean size is 1."""
        rng = np.random.default_rng(self.seed)
        drawn = rng.uniform(-1, 1, (2, self.grid, self.grid)).astype(np.float32)
        fields = [
            np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC), np.float64)
            for part in drawn
        ]
        return [part / np.abs(part).mean() for part in fields]


@dataclass(frozen=True)
class TextSuffix(Trigger):
    """A sentence behind the question.

    Attributes:
        text: The sentence.
    """

    text: str = BACKDOOR_SENTENCE

    name: ClassVar[str] = "text_suffix"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InvalidSetting("text must not be empty.", param="text")

    def ask(self, question: str) -> str:
        return f"{question} {self.text}"

    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...]:
        return ()


def _sampled(
    pixels: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bilinear values of [H, W, 3] at [H, W] places; outside, those of the border."""
    height, width = pixels.shape[:2]
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper = pixels[top, left] * (1 - across) + pixels[top, right] * across
    lower = pixels[bottom, left] * (1 - across) + pixels[bottom, right] * across
    bent: NDArray[np.float64] = upper * (1 - down) + lower * down
    return bent
