"""Images that stand in a record as base64 text, as exports to JSON and CSV write them."""

from __future__ import annotations

import base64
import re

from purifier.base64_text import canonical_base64
from purifier.errors import InvalidBase64

LONGEST_NAME = 4096
"""Characters of the longest path that a file system takes; a longer text names no file."""

_SHORTEST = 64
_HEAD = 64
_ALPHABET = re.compile(r"[A-Za-z0-9+/_=\s-]*")


def decoded(text: str) -> bytes | None:
    """The bytes of base64 text, white space left out; None if it is none."""
    try:
        return base64.b64decode(canonical_base64("".join(text.split())), validate=True)
    except (InvalidBase64, ValueError):
        return None


def is_image_text(text: str) -> bool:
    """Whether a text is base64 of an image and no file name.

    File names that are as long, hold no dot and begin with the base64 of an image's first bytes
    are taken for images.
    """
    if len(text) < _SHORTEST or _ALPHABET.fullmatch(text, 0, _HEAD) is None:
        return False
    head = "".join(text[:_HEAD].split())
    data = decoded(head[: len(head) // 4 * 4])
    return data is not None and _is_image(data) and _ALPHABET.fullmatch(text) is not None


def _is_image(data: bytes) -> bool:
    """Whether bytes begin as PNG, JPEG, GIF, WebP, TIFF or BMP does."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    if data[:2] == b"BM":
        return data[6:10] == bytes(4)
    starts = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    return data.startswith(starts)
