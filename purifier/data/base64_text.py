"""Images that stand in a record as base64 text, as exports to JSON and CSV write them."""

from __future__ import annotations

import base64
import binascii
import re

LONGEST_NAME = 4096
"""Characters of the longest path that a file system takes; a longer text names no file."""

_SHORTEST = 64
_HEAD = 64
_ALPHABET = re.compile(r"[A-Za-z0-9+/_=\s-]*")
_URL_SAFE = str.maketrans("-_", "+/")


def decoded(text: str) -> bytes | None:
    """The bytes of base64 text; None if it is none.

    Line breaks and spaces do not count. The alphabet may be the one for URLs, and the padding
    may be missing.
    """
    plain = "".join(text.split()).translate(_URL_SAFE)
    bare = plain.rstrip("=")
    padding = -len(bare) % 4
    if len(plain) - len(bare) not in (0, padding):
        return None
    try:
        return base64.b64decode(bare + "=" * padding, validate=True)
    except (binascii.Error, ValueError):
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
