"""The training objective against the published LLaDA-V code: masks, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from purifier.denoise.training import forward_process, mask_probability, masked_diffusion_loss
from purifier.mdlm.base import IGNORE_LABEL, IMAGE_PLACEHOLDER, Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.seeding import seeded
from tests.support.golden import golden_folder, golden_mdlm, read_case

CASES = ["conversation_mask", "image_and_text_only", "two_images_no_mask"]


@pytest.mark.parametrize("name", CASES)
def test_loss_masks_and_gradients(name: str) -> None:
    case = read_case("llada_v", f"train_{name}")
    stored = load_file(golden_folder("llada_v") / f"train_{name}.safetensors")
    mdlm = golden_mdlm(
        aspect_ratio=case["image_aspect_ratio"], merge_type=case["mm_patch_merge_type"]
    )
    mdlm.trainable(["projector", "vision_tower", "language_model"])
    embeds, labels = _expand(mdlm, case, stored)
    assert torch.equal(labels, stored["labels_after_image_insertion"])

    with seeded(case["torch_manual_seed"]):
        t = torch.rand(len(labels))
        uniform = torch.rand(labels.shape)
    labelled = labels != IGNORE_LABEL
    masked = forward_process(labelled, t, uniform)
    assert torch.equal(t, stored["t"])
    torch.testing.assert_close(mask_probability(t), stored["p_mask"])
    assert torch.equal(masked, stored["masked_indices"])

    noisy = torch.where(masked[..., None], mdlm.mask_embedding, embeds)
    positions = torch.arange(labels.shape[1]).expand(len(labels), -1)
    attends = None
    if case["attention_mask_passed"]:
        turns = stored["conversation_ids"]
        attends = turns[:, :, None] >= turns[:, None, :]
    logits = mdlm.logits(noisy, positions, attends=attends)
    torch.testing.assert_close(logits[masked], stored["logits_at_masked"], atol=1e-4, rtol=0)
    loss = masked_diffusion_loss(logits, labels, masked, t, labelled.sum(1))
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)

    loss.backward()
    norms = {
        "mm_projector": mdlm.modules.mm_projector,
        "vision_tower": mdlm.modules.vision_tower,
    }
    for part, module in norms.items():
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        norm = torch.cat(gradients).norm().item()
        assert norm == pytest.approx(case["grad_norm"][part], rel=1e-4)
    for key, expected in stored.items():
        if key.startswith("grad.model.mm_projector."):
            actual = mdlm.modules.mm_projector.get_parameter(
                key.removeprefix("grad.model.mm_projector.")
            )
            torch.testing.assert_close(actual.grad, expected, atol=1e-4, rtol=1e-3)


def _expand(mdlm: LladaV, case: dict[str, Any], stored: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings with images inserted, padded with zeros, and labels likewise."""
    names = iter(case["images"])
    rows, row_labels = [], []
    for ids, labels in zip(stored["input_ids"], stored["labels"], strict=True):
        has_image = bool((ids == IMAGE_PLACEHOLDER).any())
        images = []
        if has_image:
            picture = Image.open(golden_folder("llada_v") / next(names))
            images.append(mdlm.prepare_image(picture))
        prompt = mdlm.embed(Inputs(ids, tuple(images)))
        expanded = torch.full((len(prompt.embeds),), IGNORE_LABEL)
        expanded[~prompt.visual] = labels[ids != IMAGE_PLACEHOLDER]
        rows.append(prompt.embeds)
        row_labels.append(expanded)
    # The published collator pads with attended zero vectors.
    return (
        pad_sequence(rows, batch_first=True),
        pad_sequence(row_labels, batch_first=True, padding_value=IGNORE_LABEL),
    )
