"""Double precision where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor

from purifier.errors import PurifierError


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, moved to the CPU from devices without that type."""
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
