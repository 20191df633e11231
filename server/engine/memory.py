"""How much memory a model takes, and how much there is."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

from purifier.mdlm.shards import count_values

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's tensors in a dtype, from the headers of its files.

    Raises:
        CheckpointError: If a file is no safetensors file.
    """
    return count_values(folder) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device, those of models nobody uses any more included.

    On the host a container's limit counts where it is lower.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    _return_freed()
    return min([int(psutil.virtual_memory().available), *_left_in_cgroup()])


def _return_freed() -> None:
    """Lets the allocator give back what is freed; glibc keeps a good deal of it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _left_in_cgroup() -> list[int]:
    for limit, current in _CGROUPS:
        try:
            most = limit.read_text().strip()
            return [] if most == "max" else [max(0, int(most) - int(current.read_text()))]
        except (OSError, ValueError):
            continue
    return []
