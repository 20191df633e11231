"""Lists that a record holds as JSON text, as tables without nested columns write them."""

from __future__ import annotations

import json
from typing import Any


def unpacked(value: Any) -> Any:
    """The list or object that a value is the JSON text of; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def packed(value: Any) -> str:
    """A value as JSON text; escapes what is not ASCII only where UTF-8 cannot write it."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
