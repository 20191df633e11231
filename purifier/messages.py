"""Bounds on what messages repeat of an input, so that no row or request can fill a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_OF_A_MESSAGE = 2_000
"""Characters of the longest message of an error."""

MOST_OF_A_PARAM = 200
"""Characters of the longest name of a field."""

_MOST_OF_A_VALUE = 100
_GAP = " [...] "


def bounded(text: str, most: int = MOST_OF_A_MESSAGE) -> str:
    """A text of at most so many characters; of a longer one the beginning and the end.

    Args:
        text: Any text.
        most: Characters, at least 20.
    """
    if len(text) <= most:
        return text
    room = most - len(_GAP)
    tail = room // 3
    return text[: room - tail] + _GAP + text[-tail:]


def quoted(value: str, most: int = _MOST_OF_A_VALUE) -> str:
    """A value of the input in quotes; of a long one the beginning and its length.

    Args:
        value: What was given.
        most: Characters that are repeated.
    """
    if len(value) <= most:
        return repr(value)
    return f"{value[:most]!r}... ({len(value):,} characters)"


def kind_name(value: Any) -> str:
    """What a value of JSON or of a table is, in words: to say what stands in a field."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and value != value:
        return "NaN"
    names = ((str, "text"), (int, "a number"), (float, "a number"), (list, "a list"))
    found = next((name for kind, name in names if isinstance(value, kind)), None)
    return found or ("an object" if isinstance(value, Mapping) else f"a {type(value).__name__}")
