"""What a seeded block draws, and what it leaves behind."""

from __future__ import annotations

import torch
from torch import nn

from purifier.seeding import seeded


def drawn(seed: int) -> torch.Tensor:
    with seeded(seed):
        return nn.Linear(3, 2).weight.detach()


def test_the_seed_decides_what_is_drawn() -> None:
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_draws_behind_the_block_do_not_depend_on_it() -> None:
    with seeded(5):
        expected = torch.rand(4)
    with seeded(5):
        drawn(1)
        assert torch.equal(torch.rand(4), expected)
