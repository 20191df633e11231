"""The size of a WebP file, told by its header.

Pillow's decoder takes memory for the whole canvas when it opens a file; this is known before.
"""

from __future__ import annotations


def canvas_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file; None if it is none, or too damaged to tell."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + _number(data[24:27]), 1 + _number(data[27:30])
    if kind == b"VP8L":
        packed = _number(data[21:25])
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return _number(data[26:28]) & 0x3FFF, _number(data[28:30]) & 0x3FFF
    return None


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
