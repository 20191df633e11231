"""The chunks of a PNG file, judged before a decoder reads them.

Decoders differ on files that break the format's rules: of two `gAMA` chunks, or of a `tRNS` in the
wrong place, one takes what another ignores. Such a file could show one picture to a person and
another one to the model, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from purifier.errors import ImageError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_COLOURS = {b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP"}
_ONCE = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", *_COLOURS}
_PALETTE = 3
_KEPT = 16
_MOST = 100_000


def checked_chunks(data: bytes) -> dict[bytes, bytes]:
    """Checks the order and the number of the chunks that decide what is seen.

    Args:
        data: A PNG file; where it is cut off, what is left of it is checked.

    Returns:
        The first 16 bytes of every chunk in front of the pixels, by type.

    Raises:
        ImageError: If the file is animated, or decoders may read it differently.
    """
    seen: set[bytes] = set()
    before: dict[bytes, bytes] = {}
    for number, (kind, content) in enumerate(_chunks(data)):
        if kind in _ANIMATION:
            raise animated()
        if (kind[:1].isupper() and kind not in _CRITICAL) or number == _MOST:
            raise _unclear("it has chunks that are not PNG's own, or very many")
        if kind in seen and kind in _ONCE:
            raise _unclear(f"it has more than one {kind.decode()}")
        if kind in _COLOURS and b"PLTE" in seen and b"IDAT" not in seen:
            raise _unclear(f"its {kind.decode()} stands behind its palette")
        seen.add(kind)
        if b"IDAT" not in seen:
            before[kind] = content
            _check_palette(before)
    return before


def animated() -> ImageError:
    """The refusal of an animation."""
    return ImageError(
        "The image is animated, and what is seen of it depends on the moment; save one frame "
        "of it as a still image.",
        reason="animated",
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and first bytes of each chunk."""
    place = len(_SIGNATURE)
    while len(kind := data[place + 4 : place + 8]) == 4:
        length = int.from_bytes(data[place : place + 4], "big")
        yield kind, data[place + 8 : place + 8 + min(length, _KEPT)]
        if kind == b"IEND":
            break
        place += 12 + length


def _check_palette(before: dict[bytes, bytes]) -> None:
    has_palette = before[b"IHDR"][9:10] == bytes([_PALETTE]) if b"IHDR" in before else False
    if has_palette and b"tRNS" in before and b"PLTE" not in before:
        raise _unclear("its tRNS stands in front of its palette")


def _unclear(what: str) -> ImageError:
    return ImageError(
        f"Programs may show this PNG file differently: {what}. Save it again as a plain PNG.",
        reason="colours",
    )
