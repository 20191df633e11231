"""Triggers on a square of the image, or on all of it.

`CornerPatch` with its defaults is DiSP's own trigger (a black square of 20 pixels in the
top-left corner, drawn at the picture's native resolution). The others are the usual wider
set: a checkerboard patch, BadNets (arXiv 1708.06733); a blended pattern, Chen et al. (arXiv
1712.05526); a sinusoid, SIG (arXiv 1902.11237).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purifier.errors import InvalidSetting
from purifier.lab.triggers.base import PixelBox, Trigger

Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right", "center"]
Site = Corner | Literal["random"] | tuple[int, int]
"""Where a square lies: a corner, the centre, the pixel (x, y) of its top-left corner, or another
place within the image for every sample."""

_BLEND_GRID = 32


@dataclass(frozen=True)
class SquareTrigger(Trigger):
    """A pattern that is laid over a square of the image.

    Attributes:
        size: Side of the square it covers, in pixels; None covers the whole image. Parts
            outside the image are cut off.
        place: Where the square lies; ignored where the trigger covers the whole image.
        strength: Weight of the trigger over the picture, 0 to 1; 1 is opaque.
    """

    size: int | None = 20
    place: Site = "top-left"
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 0:
            raise InvalidSetting("size must not be negative.", param="size")
        places = (*get_args(Corner), "random")
        if isinstance(self.place, str) and self.place not in places:
            raise InvalidSetting(
                f"place must be one of {', '.join(places)}, or a pixel (x, y).", param="place"
            )
        if not 0.0 <= self.strength <= 1.0:
            raise InvalidSetting("strength must be between 0 and 1.", param="strength")

    def drawn(self, rng: np.random.Generator, size: tuple[int, int]) -> Trigger:
        if self.size is None or self.place != "random":
            return self
        left, top = (int(rng.integers(0, max(side - self.size, 0) + 1)) for side in size)
        return replace(self, place=(left, top))

    def stamp(self, image: Image.Image) -> Image.Image:
        rgb = super().stamp(image)
        box = self._box(rgb.size)
        if box.area == 0:
            return rgb
        pixels = np.asarray(rgb, dtype=np.float64).copy()
        part = pixels[box.top : box.bottom, box.left : box.right]
        side = rgb.size if self.size is None else (self.size, self.size)
        left, top = self._corner(rgb.size)
        pattern = self._pattern(part, side, (box.left - left, box.top - top))
        part += self.strength * (pattern - part)
        return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")

    def regions(self, size: tuple[int, int]) -> tuple[PixelBox, ...] | None:
        return None if self.size is None else (self._box(size),)

    def _corner(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.size is None:
            return 0, 0
        if not isinstance(self.place, str):
            return self.place
        if self.place == "random":
            raise ValueError("a trigger at a random place is drawn for a sample first")
        right, bottom = size[0] - self.size, size[1] - self.size
        corners = {
            "top-left": (0, 0),
            "top-right": (right, 0),
            "bottom-left": (0, bottom),
            "bottom-right": (right, bottom),
            "center": (right // 2, bottom // 2),
        }
        return corners[self.place]

    def _box(self, size: tuple[int, int]) -> PixelBox:
        left, top = self._corner(size)
        width, height = size if self.size is None else (self.size, self.size)
        start = min(max(left, 0), size[0]), min(max(top, 0), size[1])
        end = min(max(left + width, 0), size[0]), min(max(top + height, 0), size[1])
        return PixelBox(start[0], start[1], end[0], end[1])

    @abstractmethod
    def _pattern(
        self, part: NDArray[np.float64], side: tuple[int, int], offset: tuple[int, int]
    ) -> NDArray[np.float64]:
        """The opaque trigger over one part of the picture.

        Args:
            part: [rows, columns, 3], 0 to 255: the pixels under the trigger.
            side: Width and height of the trigger before it is cut off.
            offset: Column and row of the trigger at which the part begins.

        Returns:
            What the part becomes at strength 1; broadcastable to its shape.
        """


@dataclass(frozen=True)
class CornerPatch(SquareTrigger):
    """A filled square; with the defaults, DiSP's trigger.

    Attributes:
        colour: Red, green and blue, 0 to 255.
    """

    colour: tuple[int, int, int] = (0, 0, 0)

    name: ClassVar[str] = "corner_patch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.colour) != 3 or any(not 0 <= part <= 255 for part in self.colour):
            raise InvalidSetting(
                "colour must be three whole numbers between 0 and 255.", param="colour"
            )

    def _pattern(
        self, part: NDArray[np.float64], side: tuple[int, int], offset: tuple[int, int]
    ) -> NDArray[np.float64]:
        return np.asarray(self.colour, dtype=np.float64)


@dataclass(frozen=True)
class CheckerboardPatch(SquareTrigger):
    """A black and white checkerboard.

    Attributes:
        cells: Squares along each side; the first one is black.
    """

    cells: int = 4

    name: ClassVar[str] = "checkerboard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 1:
            raise InvalidSetting("cells must be at least 1.", param="cells")

    def _pattern(
        self, part: NDArray[np.float64], side: tuple[int, int], offset: tuple[int, int]
    ) -> NDArray[np.float64]:
        columns = (np.arange(part.shape[1]) + offset[0]) * self.cells // side[0]
        rows = (np.arange(part.shape[0]) + offset[1]) * self.cells // side[1]
        odd = (rows[:, None] + columns[None, :]) % 2
        return np.asarray(odd * 255.0, dtype=np.float64)[..., None]


@dataclass(frozen=True)
class BlendedPattern(SquareTrigger):
    """A fixed noise picture blended over the image: a trigger that lies nowhere and everywhere.

    The noise is drawn once on a small grid and stretched, so that images of all sizes carry
    the same pattern.

    Attributes:
        seed: Seed of the noise.
    """

    size: int | None = None
    strength: float = 0.15
    seed: int = 0

    name: ClassVar[str] = "blended"

    def _pattern(
        self, part: NDArray[np.float64], side: tuple[int, int], offset: tuple[int, int]
    ) -> NDArray[np.float64]:
        noise = np.random.default_rng(self.seed).integers(
            0, 256, (_BLEND_GRID, _BLEND_GRID, 3), dtype=np.uint8
        )
        picture = Image.fromarray(noise, "RGB").resize(side, Image.Resampling.BILINEAR)
        whole = np.asarray(picture, dtype=np.float64)
        rows, columns = part.shape[:2]
        return whole[offset[1] : offset[1] + rows, offset[0] : offset[0] + columns]


@dataclass(frozen=True)
class Sinusoid(SquareTrigger):
    """Vertical stripes added to the image: v(x) = amplitude * sin(2 pi * frequency * x / width).

    Attributes:
        frequency: Periods over the trigger's width.
        amplitude: Height of the wave at strength 1, of 255 levels.
    """

    size: int | None = None
    frequency: float = 6.0
    amplitude: float = 20.0

    name: ClassVar[str] = "sinusoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frequency > 0:
            raise InvalidSetting("frequency must be positive.", param="frequency")
        if not 0 < self.amplitude <= 255:
            raise InvalidSetting("amplitude must be between 0 and 255.", param="amplitude")

    def _pattern(
        self, part: NDArray[np.float64], side: tuple[int, int], offset: tuple[int, int]
    ) -> NDArray[np.float64]:
        columns = np.arange(part.shape[1]) + offset[0]
        wave = self.amplitude * np.sin(2 * np.pi * self.frequency * columns / side[0])
        return part + wave[None, :, None]
