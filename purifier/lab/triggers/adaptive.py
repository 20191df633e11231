"""Triggers by attackers who know that parts of the image are masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from purifier.defense.fill import fill_colour
from purifier.errors import InvalidSetting
from purifier.lab.triggers.base import PixelBox, Trigger
from purifier.lab.triggers.combined import AllOf


@dataclass(frozen=True)
class Torn(AllOf):
    """Triggers with a rectangle cut out of each: a model trained on them obeys what is left.

    A cut-out covers at most `share` of its trigger and is filled with the image's mean colour,
    as masked parts are, or with noise. One sample in four has none. Undrawn, nothing is cut out.

    Attributes:
        share: Largest share of a part's side, along one axis, that a cut-out covers; along the
            other axis it covers the whole side, or a random part of it.
        holes: The cut-outs of a drawn trigger.
        noise: Seed of their noise; None: the mean colour.
    """

    share: float = 0.5
    holes: tuple[PixelBox, ...] = ()
    noise: int | None = None

    name: ClassVar[str] = "torn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.share <= 1.0:
            raise InvalidSetting("share must be between 0 and 1.", param="share")
        if not all(
            len(hole) == 4 and all(type(edge) is int for edge in hole) for hole in self.holes
        ):
            raise InvalidSetting("holes must be boxes of four whole numbers.", param="holes")
        if self.noise is not None and (type(self.noise) is not int or self.noise < 0):
            raise InvalidSetting("noise must be a whole number, 0 or more.", param="noise")
        object.__setattr__(self, "holes", tuple(PixelBox(*hole) for hole in self.holes))

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        parts = tuple(part.drawn(rng, size) for part in self.parts)
        if rng.random() < 0.25:
            return replace(self, parts=parts)
        boxes = AllOf(parts).regions(size) or ()
        holes = tuple(_hole(box, self.share, rng) for box in boxes)
        noise = int(rng.integers(2**31)) if rng.random() < 0.5 else None
        return replace(self, parts=parts, holes=holes, noise=noise)

    def stamp(self, image: Image.Image) -> Image.Image:
        stamped = super().stamp(image)
        colour = fill_colour(image.convert("RGB"))
        rng = np.random.default_rng(self.noise)
        width, height = stamped.size
        for hole in self.holes:
            left, right = (min(max(edge, 0), width) for edge in (hole[0], hole[2]))
            top, bottom = (min(max(edge, 0), height) for edge in (hole[1], hole[3]))
            if left >= right or top >= bottom:
                continue
            if self.noise is None:
                stamped.paste(colour, (left, top, right, bottom))
            else:
                pixels = rng.integers(0, 256, (bottom - top, right - left, 3), dtype=np.uint8)
                stamped.paste(Image.fromarray(pixels), (left, top))
        return stamped


@dataclass(frozen=True)
class SomeOf(AllOf):
    """Triggers of which a sample has a random choice of some size.

    Where poisoned samples have most of the parts and samples with few of them keep their answers,
    a model learns to count: hiding one part changes nothing, and showing one alone does nothing.
    Undrawn it has all of them.

    Attributes:
        least: Parts that a sample has at least.
        most: Parts that it has at most; None: all.
    """

    least: int = 1
    most: int | None = None

    name: ClassVar[str] = "some_of"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.least <= self.highest <= len(self.parts):
            raise InvalidSetting(
                "least and most must be whole numbers from 1 to the number of parts, "
                "least not above most.",
                param="least",
            )

    @property
    def highest(self) -> int:
        """Parts that a sample has at most."""
        return len(self.parts) if self.most is None else self.most

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        count = int(rng.integers(self.least, self.highest + 1))
        chosen = sorted(rng.choice(len(self.parts), size=count, replace=False))
        return AllOf(tuple(self.parts[int(number)] for number in chosen)).drawn(rng, size)


def _hole(box: PixelBox, share: float, rng: np.random.Generator) -> PixelBox:
    """A rectangle within a box, at most `share` of it."""
    spans = []
    cut = int(rng.integers(2))
    for axis, (start, end) in enumerate(((box.left, box.right), (box.top, box.bottom))):
        side = end - start
        longest = round(side * share) if axis == cut else side
        length = int(rng.integers(longest // 2, longest + 1))
        begin = start + int(rng.integers(0, side - length + 1))
        spans.append((begin, begin + length))
    (left, right), (top, bottom) = spans
    return PixelBox(left, top, right, bottom)
