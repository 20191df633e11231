"""Base64 as people send it: wrapped, URL-safe, unpadded or percent-encoded."""

from __future__ import annotations

import re
from urllib.parse import unquote

from purifier.errors import InvalidBase64

_FOREIGN = re.compile(r"[^A-Za-z0-9+/]")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_URL_SAFE = str.maketrans("-_", "+/")


def canonical_base64(text: str) -> str:
    """The same base64 in the standard alphabet, padded, on one line.

    Read are spellings that leave no doubt about the bytes: line breaks and the white space around
    them, the URL-safe alphabet, missing padding, and percent-encoding (as in a data URL).

    Args:
        text: Base64, without the header of a data URL.

    Returns:
        What `base64.b64decode(..., validate=True)` reads.

    Raises:
        InvalidBase64: If it is cut off, or could be read in two ways; the message is a clause that
            says why.
    """
    text = _on_one_line(_unescaped(text))
    body = text.rstrip("=")
    padding = len(text) - len(body)
    if ("+" in body or "/" in body) and ("-" in body or "_" in body):
        raise InvalidBase64("it mixes the standard alphabet (+ and /) with the URL-safe one")
    body = body.translate(_URL_SAFE)
    foreign = _FOREIGN.search(body)
    if foreign is not None:
        raise InvalidBase64(_why(foreign))
    if len(body) % 4 == 1:
        raise InvalidBase64("it is cut off: a number of characters is left that no bytes have")
    missing = -len(body) % 4
    if padding not in (0, missing):
        raise InvalidBase64(f"it ends with {padding:,} = where {missing} belong")
    return body + "=" * missing


def _unescaped(text: str) -> str:
    """Percent-encoding undone; base64 itself has no percent sign."""
    if "%" not in text:
        return text
    if _ESCAPE.search(text):
        raise InvalidBase64("it has a percent sign that no two hexadecimal digits follow")
    return unquote(text, errors="replace")


def _on_one_line(text: str) -> str:
    lines = text.replace("\r", "\n").split("\n")
    return "".join(line.strip(" \t") for line in lines)


def _why(foreign: re.Match[str]) -> str:
    character = foreign[0]
    if character in " \t":
        return "it has a space inside a line, where a + may have been lost"
    if character == "=":
        return "it goes on after its padding (=)"
    named = repr(character) if character.isascii() and character.isprintable() else "a character"
    return f"{named} at position {foreign.start() + 1:,} is not base64"
