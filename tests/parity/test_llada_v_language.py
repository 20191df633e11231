"""The language model's forward pass against the published LLaDA-V code."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.support.golden import golden_folder, golden_mdlm


def test_logits_with_and_without_masks() -> None:
    expected = load_file(golden_folder("llada_v") / "language_forward.safetensors")
    mdlm = golden_mdlm()
    embeds = expected["inputs_embeds"]
    positions = torch.arange(embeds.shape[1]).expand(len(embeds), -1)
    plain = mdlm.logits(embeds, positions)
    torch.testing.assert_close(plain, expected["logits_without_mask"], atol=1e-4, rtol=0)

    lengths = expected["attention_mask"].sum(1)
    real = expected["attention_mask"].bool()
    padded = mdlm.logits(embeds, positions, lengths)
    torch.testing.assert_close(
        padded[real], expected["logits_with_padding_mask"][real], atol=1e-4, rtol=0
    )

    attends = expected["mask_4d"][:, 0].bool()
    turned = mdlm.logits(embeds, positions, attends=attends)
    torch.testing.assert_close(turned, expected["logits_with_4d_mask"], atol=1e-4, rtol=0)


def test_only_the_asked_positions_are_computed() -> None:
    expected = load_file(golden_folder("llada_v") / "language_forward.safetensors")
    mdlm = golden_mdlm()
    positions = torch.tensor([[3, 20, 7], [0, 1, 23]])
    logits = mdlm.logits(expected["inputs_embeds"], positions)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(
        logits, expected["logits_without_mask"][rows, positions], atol=1e-4, rtol=0
    )
