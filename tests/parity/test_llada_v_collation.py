"""The trainer's own collation and loss against the published LLaDA-V code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from purifier.denoise.training import mask_probability
from purifier.mdlm.base import IGNORE_LABEL, IMAGE_PLACEHOLDER
from purifier.mdlm.llada_v import LladaV
from purifier.tuning.batch import Noise, batch_loss, collate
from purifier.tuning.examples import Example, Text, TrainingImage
from tests.support.golden import golden_folder, golden_mdlm, read_case

CASES = ["conversation_mask", "image_and_text_only", "two_images_no_mask"]


@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_projector_gradient(name: str, tower: bool) -> None:
    case = read_case("llada_v", f"train_{name}")
    stored = load_file(golden_folder("llada_v") / f"train_{name}.safetensors")
    mdlm = golden_mdlm(
        aspect_ratio=case["image_aspect_ratio"], merge_type=case["mm_patch_merge_type"]
    )
    mdlm.trainable(["projector", "vision_tower"] if tower else ["projector"])
    batch = collate(mdlm, _examples(mdlm, case, stored, tower), padding="reference", tower=tower)
    assert torch.equal(batch.labels, stored["labels_after_image_insertion"])
    assert batch.lengths is None
    turn_mask = case["attention_mask_passed"]
    if turn_mask:
        assert torch.equal(batch.turns, stored["conversation_ids"])

    generator = torch.Generator().manual_seed(case["torch_manual_seed"])
    t = torch.rand(len(batch.labels), generator=generator)
    uniform = torch.rand(batch.labels.shape, generator=generator)
    torch.testing.assert_close(mask_probability(t), stored["p_mask"])
    loss = batch_loss(mdlm, batch, Noise(t, uniform), turn_mask=turn_mask)
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)

    loss.backward()
    parts = ["mm_projector", "vision_tower"] if tower else ["mm_projector"]
    for part in parts:
        module = getattr(mdlm.modules, part)
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        # The features start behind the patch embedding, whose own gradient is left out here.
        if part == "mm_projector":
            norm = torch.cat(gradients).norm().item()
            assert norm == pytest.approx(case["grad_norm"][part], rel=1e-4)
        else:
            name = "encoder.layers.0.self_attn.q_proj.weight"
            published = f"model.vision_tower.vision_tower.vision_model.{name}"
            norm = module.get_parameter(name).grad.norm().item()
            assert norm == pytest.approx(case["grad_norm_per_parameter"][published], rel=1e-3)


def _examples(
    mdlm: LladaV, case: dict[str, Any], stored: dict[str, Tensor], tower: bool
) -> list[Example]:
    """The stored ids and labels, without the padding that the published collator added."""
    names = iter(case["images"])
    examples = []
    for ids, labels in zip(stored["input_ids"], stored["labels"], strict=True):
        n = int((ids != mdlm.tokens.pad).sum())
        ids, labels = ids[:n], labels[:n]
        images = []
        if bool((ids == IMAGE_PLACEHOLDER).any()):
            picture = Image.open(golden_folder("llada_v") / next(names))
            image = mdlm.prepare_image(picture)
            features = mdlm.image_features(image, tower=tower)
            images.append(TrainingImage(features, picture.size, image.n_tokens))
        # A round ends with the end of turn behind an answer.
        answered = (labels == mdlm.tokens.eot) & (torch.roll(labels, 1) != IGNORE_LABEL)
        turns = torch.cat([torch.zeros(1, dtype=torch.int64), answered.cumsum(0)[:-1]])
        text = Text(ids, labels, torch.zeros(n, dtype=torch.bool), turns)
        examples.append(Example(text, tuple(images)))
    return examples
