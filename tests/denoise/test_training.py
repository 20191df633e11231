import math

import torch

from purifier.denoise.training import forward_process, mask_probability, masked_diffusion_loss


def test_loss_is_the_weighted_cross_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]]))
    masked = torch.tensor([[True, False, True]])
    t = torch.tensor([0.4])
    loss = masked_diffusion_loss(logits, torch.tensor([[0, 0, 1]]), masked, t, torch.tensor([4]))
    p = float(mask_probability(t))
    expected = -(math.log(0.5) + math.log(0.1)) / p / 4
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_sample_without_labels_adds_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, requires_grad=True)
    labelled = torch.tensor([[True, True, False], [False, False, False]])
    t = torch.tensor([0.9, 0.9])
    masked = forward_process(labelled, t, torch.zeros(2, 3))
    targets = torch.ones(2, 3, dtype=torch.long)
    loss = masked_diffusion_loss(logits, targets, masked, t, labelled.sum(1))
    alone = masked_diffusion_loss(logits[:1], targets[:1], masked[:1], t[:1], labelled[:1].sum(1))
    torch.testing.assert_close(loss, alone / 2)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[1].abs().max()) == 0
    assert bool(torch.isfinite(logits.grad).all())
