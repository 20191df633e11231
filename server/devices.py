"""Which device and precision are used where nobody chose."""

from __future__ import annotations

import torch


def default_device() -> str:
    """The best device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(device: str) -> str:
    """What models are loaded in on a device."""
    return "bfloat16" if device.startswith("cuda") else "float32"
