"""How many tokens a denoising step commits (LLaDA, algorithm 4: a linear schedule)."""

from __future__ import annotations


def linear_schedule(n_masked: int, steps: int) -> list[int]:
    """Splits `n_masked` tokens evenly over `steps`; the first steps take the remainder.

    A schedule of more steps than tokens ends in zeros.
    """
    even, remainder = divmod(n_masked, steps)
    return [even + (step < remainder) for step in range(steps)]
