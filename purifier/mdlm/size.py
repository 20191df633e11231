"""The size of a checkpoint, told before anything of it is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from purifier.errors import CheckpointError


def count_values(folder: Path) -> int:
    """Numbers in all tensors of a checkpoint folder, from the headers of its files.

    Raises:
        CheckpointError: If a file is no safetensors file.
    """
    numbers = 0
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                    numbers += math.prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError):
            raise CheckpointError(f"{folder.name}: {file.name} is damaged.") from None
    return numbers
