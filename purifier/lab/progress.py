"""A training phase that goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from purifier.tuning.state import read_facts, restore_state, save_state


class Progress:
    """Saves and restores parameters, AdamW's moments and the random generator.

    A phase that is resumed takes the same steps as one that never stopped.

    Args:
        file: Where the state is kept; None keeps nothing.
        parameters: What is trained.
        optimizer: AdamW over `parameters`, in the same order.
        generator: The phase's source of random numbers.
        every: Steps between two saves.
    """

    def __init__(
        self,
        file: Path | None,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.AdamW,
        generator: torch.Generator,
        *,
        every: int = 500,
    ) -> None:
        self._file = file
        self._parameters = {str(number): each for number, each in enumerate(parameters)}
        self._optimizer = optimizer
        self._generator = generator
        self._every = every

    def resume(self) -> int:
        """Restores the last state, if there is one; returns the steps it had taken."""
        facts = None if self._file is None else read_facts(self._file)
        if self._file is None or facts is None:
            return 0
        extra = restore_state(self._file, self._parameters, self._optimizer)
        self._generator.set_state(extra["generator"])
        return int(facts["step"])

    def after(self, step: int) -> None:
        """Saves if `step`, counted from 1, is due."""
        if self._file is not None and step % self._every == 0:
            extra = {"generator": self._generator.get_state()}
            save_state(self._file, self._parameters, self._optimizer, {"step": step}, extra)

    def finish(self) -> None:
        """Forgets the saved state: the phase is over."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
