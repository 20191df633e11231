"""What a route says about a request while it answers it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Trace:
    """Notes of one request; times are monotonic seconds.

    Attributes:
        began: When its head was read.
        checkpoint: What answers it; None where no model is asked.
        first_text: When the first text of a stream was sent; None before, and without a stream.
    """

    began: float = field(default_factory=time.monotonic)
    checkpoint: str | None = None
    first_text: float | None = None

    def sends_text(self) -> None:
        """Text of a stream is about to be sent."""
        if self.first_text is None:
            self.first_text = time.monotonic()
