"""The small JSON files of a checkpoint folder, which come from a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from purifier.errors import CheckpointError

_LONGEST = 16 * 1024**2
"""Bytes; a published config.json has a few thousand."""
_DEEPEST = 64
"""Objects and lists within each other; published ones have three or four."""


def read_object(file: Path, name: str) -> dict[str, Any]:
    """Reads a file that must hold one JSON object.

    Args:
        file: The file.
        name: What messages call it.

    Raises:
        CheckpointError: If it cannot be read, is too long or too deep, or holds something else.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise CheckpointError(f"{name} is longer than {_LONGEST // 1024**2} MiB.")
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError, OSError):
        raise CheckpointError(f"{name} is not JSON.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is not a JSON object.")
    _require_shallow(value, name)
    return value


def _require_shallow(value: Any, name: str) -> None:
    """Refuses deep nesting, so that what reads the file may follow it by recursion."""
    level = [value]
    for _ in range(_DEEPEST):
        parts = [
            part
            for outer in level
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise CheckpointError(f"{name} is nested deeper than {_DEEPEST} levels.")
