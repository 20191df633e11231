"""The size of a checkpoint, told from headers before anything of it is loaded."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from purifier.errors import CheckpointError

_LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def count_values(folder: Path) -> int:
    """Numbers in all tensors of a checkpoint folder.

    Raises:
        CheckpointError: If a file is no safetensors file.
    """
    return sum(_values(file) for file in sorted(folder.rglob("*.safetensors")))


def _values(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError
            header: dict[str, Any] = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(tensor["shape"]) for tensor in tensors)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{file.name} is not a safetensors file.") from None
