"""A stopped training goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from purifier.lab.progress import Progress
from purifier.seeding import seeded


class Stopped(Exception):
    pass


def _train(file: Path | None, steps: int, *, stop_after: int | None = None) -> list[torch.Tensor]:
    with seeded(0):
        model = nn.Linear(4, 2)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, 0.1)
    generator = torch.Generator().manual_seed(1)
    progress = Progress(file, parameters, optimizer, generator, every=3)
    for step in range(progress.resume(), steps):
        batch = torch.randn(5, 4, generator=generator)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        progress.after(step + 1)
        if step + 1 == stop_after:
            raise Stopped
    progress.finish()
    return [parameter.detach().clone() for parameter in parameters]


def test_resumed_training_equals_an_undisturbed_one(tmp_path: Path) -> None:
    file = tmp_path / "phase.safetensors"
    with pytest.raises(Stopped):
        _train(file, 10, stop_after=7)
    assert file.is_file()
    resumed = _train(file, 10)
    assert not file.exists()
    for ours, expected in zip(resumed, _train(None, 10), strict=True):
        assert torch.equal(ours, expected)
