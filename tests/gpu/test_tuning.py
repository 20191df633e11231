"""An optimizer step on a GPU has the loss and the gradients of the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifier.data.dataset import open_dataset
from purifier.mdlm.registry import load_mdlm
from purifier.tuning.config import FinetuneConfig
from purifier.tuning.examples import TrainingRows
from purifier.tuning.train import Trainer
from tests.tuning.conftest import CONFIG, compromised, data  # noqa: F401

pytestmark = pytest.mark.gpu

FULL = replace(CONFIG, precision="float32", max_grad_norm=0.0)


def one_step(checkpoint: Path, labels: Path, config: FinetuneConfig, device: str) -> Trainer:
    """A trainer behind its first step, whose gradients are still there."""
    mdlm = load_mdlm(checkpoint, device=device)
    trainer = Trainer(mdlm, TrainingRows(mdlm, open_dataset(labels), config), config)
    trainer.train(lambda event: None, lambda: True)
    assert trainer.step == 1
    return trainer


@pytest.mark.parametrize(
    "config",
    [FULL, replace(FULL, parts=("projector",)), replace(FULL, gradient_checkpointing=True)],
    ids=["all-parts", "projector", "checkpointing"],
)
def test_loss_and_gradients(
    compromised: Path,  # noqa: F811
    data: Path,  # noqa: F811
    device: str,
    config: FinetuneConfig,
) -> None:
    expected = one_step(compromised, data, config, "cpu")
    found = one_step(compromised, data, config, device)
    assert found.losses[0] == pytest.approx(expected.losses[0], rel=1e-4)
    assert found.opened.keys() == expected.opened.keys()
    for name, parameter in expected.opened.items():
        assert parameter.grad is not None
        gradient = found.opened[name].grad
        assert gradient is not None
        norm, other = parameter.grad.norm(), gradient.norm().cpu()
        torch.testing.assert_close(other, norm, rtol=1e-3, atol=1e-6)


def test_half_precision_learns_alike(compromised: Path, data: Path, device: str) -> None:  # noqa: F811
    """What a GPU does by default: bfloat16 autocast over float32 parameters."""
    config = replace(FULL, precision="bfloat16")
    expected = one_step(compromised, data, FULL, "cpu")
    found = one_step(compromised, data, config, device)
    assert found.losses[0] == pytest.approx(expected.losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in found.opened.values())
