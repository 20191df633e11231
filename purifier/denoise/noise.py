"""Where the sampler's random numbers come from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """The random numbers of one request."""

    def gumbel_uniform(self, positions: Tensor, vocab_size: int) -> Tensor:
        """Uniform draws for the token choice, float64 [P, vocab_size] on the CPU.

        Args:
            positions: int64 [P], sequence positions that are still masked.
            vocab_size: Number of ids.
        """

    def confidence(self, positions: Tensor) -> Tensor:
        """Uniform draws that replace the confidence (`random` remasking), float32 [P]."""


class SeededNoise:
    """Draws from a generator of its own, so that a request gives the same answer in any company.

    The draws are made on the CPU: the same seed gives the same answer on every device.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def gumbel_uniform(self, positions: Tensor, vocab_size: int) -> Tensor:
        shape = (len(positions), vocab_size)
        return torch.rand(shape, generator=self._generator, dtype=torch.float64)

    def confidence(self, positions: Tensor) -> Tensor:
        return torch.rand(len(positions), generator=self._generator)
