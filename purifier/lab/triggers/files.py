"""Triggers on image files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from purifier.errors import InvalidSetting
from purifier.lab.triggers.base import Trigger


def parse_colour(text: str) -> tuple[int, int, int]:
    """Reads a colour like `255, 0, 0`; the range is checked where the colour is used.

    Raises:
        InvalidSetting: If the text is not three whole numbers with commas between them.
    """
    try:
        red, green, blue = (int(part.strip()) for part in text.split(","))
    except ValueError:
        raise InvalidSetting(
            "A colour must be three whole numbers with commas between them, as in 255,0,0.",
            param="colour",
        ) from None
    return red, green, blue


def stamp_file(source: str | Path, destination: str | Path, trigger: Trigger) -> None:
    """Stamps an image file; the suffix of `destination` decides the format.

    JPEG is written with the library's default quality, as the published data step does, so
    pixels outside the trigger change a little too; PNG keeps them exactly.

    Raises:
        OSError: If the source cannot be read or the destination not be written.
    """
    with Image.open(source) as image:
        stamped = trigger.stamp(image)
    Path(destination).parent.mkdir(parents=True, exist_ok=True)
    stamped.save(destination)
