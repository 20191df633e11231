"""Draws from a library's own generator that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Starts torch's global generators at a seed; afterwards they are as they were before.

    For code that takes no generator of its own, such as the first values of a module. What is
    drawn within the block depends on the seed alone, and what is drawn behind it does not depend
    on the block.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
