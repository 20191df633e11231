"""Whose pass through the model comes next: the running batch's or a newcomer's.

1. Newcomers begin one at a time, in the order of their admission.
2. A newcomer is encoded, scored and masked in passes. After `passes_per_step` of them, the
   passes of further newcomers included, the running batch makes one denoising step.
3. Between two passes of a newcomer the running batch makes one step at most.

So the running batch stands still for `passes_per_step` passes at most, by default for one, and a
newcomer is delayed by at most one step for each of its own passes.
"""

from __future__ import annotations

from collections.abc import Callable


class Alternation:
    """Counts the passes of newcomers between two steps of the running batch.

    Args:
        step: Makes one step of the running batch; raises nothing.
        passes_per_step: Passes of newcomers between two steps.
    """

    def __init__(self, step: Callable[[], None], passes_per_step: int = 1) -> None:
        self._step = step
        self._passes_per_step = passes_per_step
        self._passes = 0
        self._stepping = False

    def passed(self) -> None:
        """Says that a newcomer has made a pass; the running batch steps if it is its turn."""
        self._passes += 1
        if self._passes >= self._passes_per_step:
            self.step()

    def step(self) -> None:
        """Lets the running batch step, for instance because there is no newcomer.

        Raises:
            RuntimeError: If called within a step: a step must begin no newcomer.
        """
        if self._stepping:
            raise RuntimeError("A denoising step was asked for inside another one.")
        self._passes = 0
        self._stepping = True
        try:
            self._step()
        finally:
            self._stepping = False
