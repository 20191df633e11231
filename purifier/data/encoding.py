"""Label files that are text, but not UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

from purifier.errors import DataError

_HEAD = 4


def foreign_encoding(head: bytes) -> str | None:
    """The encoding of a JSON text that is UTF-16 or UTF-32; None for every other.

    Windows writes UTF-16 where a program's output goes to a file and where "Unicode" is chosen.

    Args:
        head: The first bytes of the text, at least 4 if there are so many.
    """
    name = json.detect_encoding(head[:_HEAD])
    return name[:6].upper() if name.startswith(("utf-16", "utf-32")) else None


def require_utf8(path: Path) -> None:
    """Refuses a label file that is UTF-16 or UTF-32.

    Raises:
        DataError: Naming the encoding.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        encoding = foreign_encoding(file.read(_HEAD))
    if encoding is not None:
        raise DataError(f"{path.name} is {encoding} text; save it as UTF-8.")
