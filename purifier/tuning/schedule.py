"""The learning rate's course."""

from __future__ import annotations

import math


def rate_factor(step: int, steps: int, *, warmup: float, cosine: bool = True) -> float:
    """Share of the peak rate at a step, counted from 0: a linear rise, then a cosine to 0.

    Args:
        step: The step that is taken next.
        steps: All steps.
        warmup: Share of the steps over which the rate rises.
        cosine: Whether the rate falls at all.
    """
    rise = min(1.0, (step + 1) / (warmup * steps)) if warmup > 0 else 1.0
    fall = 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))) if cosine else 1.0
    return rise * fall
