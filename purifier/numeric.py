"""Double precision where the device has it, and the time that work on a device took."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from purifier.errors import PurifierError


def wide(tensor: Tensor, *, float64: bool = True) -> Tensor:
    """The tensor in float64, moved to the CPU from devices without that type.

    Args:
        tensor: Any floating type.
        float64: False gives float32 where the tensor is.
    """
    if not float64:
        return tensor.to(torch.float32)
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def require_finite(scores: Tensor) -> None:
    """Refuses scores that cannot be ranked.

    Raises:
        PurifierError: If a score is infinite or not a number.
    """
    if not bool(torch.isfinite(scores).all()):
        raise PurifierError(
            "The saliency of this request is not finite, so nothing can be ranked by it; "
            "load the model with dtype float32."
        )


def seconds(device: torch.device) -> float:
    """A clock that waits for the device: kernels are only queued when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return perf_counter()
