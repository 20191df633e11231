"""What a search says on the terminal while it runs."""

from __future__ import annotations

import sys

EVERY = 10
"""Batches between two lines."""


class Progress:
    """Counts batches on standard error."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self) -> None:
        self.batches += 1
        if self.batches % EVERY == 0:
            print(f"search: {self.batches} batches", file=sys.stderr, flush=True)
