"""A forward pass that finishes a few positions equals the whole one there, gradients included."""

from __future__ import annotations

import pytest
import torch

from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.seeding import seeded
from tests.defense.conftest import TOKENS, small_config


@pytest.fixture(scope="module")
def mdlm() -> LladaV:
    config = small_config()
    with seeded(11):
        modules = LladaVModules(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(11)
    for parameter in modules.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    modules.image_newline.zero_()
    return LladaV(config, modules, None, TOKENS)


@pytest.mark.parametrize("lengths", [None, [20, 13, 17]])
def test_equals_the_whole_pass_at_the_wanted_positions(
    mdlm: LladaV, lengths: list[int] | None
) -> None:
    generator = torch.Generator().manual_seed(12)
    values = torch.randn(3, 20, 32, generator=generator)
    positions = torch.tensor([[12, 3, 4], [0, 11, 12], [5, 9, 1]])
    real = None if lengths is None else torch.tensor(lengths)
    found = []
    for run in (mdlm.logits, mdlm.scored_logits):
        embeds = values.clone().requires_grad_()
        with torch.enable_grad():
            logits = run(embeds, positions, real)
            (gradient,) = torch.autograd.grad(logits.square().sum(), embeds)
        found.append((logits.detach(), gradient))
    (whole, whole_gradient), (few, few_gradient) = found
    assert few.shape == (3, 3, mdlm.vocab_size)
    torch.testing.assert_close(few, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(few_gradient, whole_gradient, rtol=1e-3, atol=1e-3)
    assert float(few_gradient.abs().max()) > 1.0
