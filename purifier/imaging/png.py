"""What stands in a PNG file before its pixels."""

from __future__ import annotations

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = 16
_MOST = 10_000


def chunks_before_pixels(data: bytes) -> dict[bytes, bytes]:
    """The chunks in front of the first one with pixels, as far as the file is whole.

    Args:
        data: A PNG file.

    Returns:
        By type, the first 16 bytes of the last chunk of that type.
    """
    found: dict[bytes, bytes] = {}
    place = len(PNG_SIGNATURE)
    for _ in range(_MOST):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if len(kind) < 4 or kind in (b"IDAT", b"fdAT", b"IEND"):
            break
        found[kind] = data[place + 8 : place + 8 + min(length, _KEPT)]
        place += 12 + length
    return found
