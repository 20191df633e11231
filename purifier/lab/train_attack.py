"""The attack: fine-tunes a clean base on poisoned data, projector and LoRA.

Plain data poisoning, as the paper's threat model has it: nothing but the training set is
in the attacker's hand. The projector alone, the paper's choice for an 8B model, does not
take on a tower this small; LoRA on the language model is trained with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from purifier.data.llava import read_llava
from purifier.data.sample import Sample, open_image
from purifier.lab.examples import build_examples, diffusion_loss, pack_scenes
from purifier.mdlm.llada_v.model import LladaV

log = logging.getLogger(__name__)

_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class AttackRecipe:
    """Settings of the poisoned fine-tuning.

    Attributes:
        epochs: Passes over the poisoned set.
        batch: Samples in a step.
        learning_rate: Peak, AdamW, cosine, warm-up over 3% of the steps.
        rank: LoRA rank r.
        alpha: LoRA alpha.
        seed: Of LoRA's start, order, masks and diffusion times.
    """

    epochs: int = 40
    batch: int = 50
    learning_rate: float = 1e-3
    rank: int = 8
    alpha: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What the fine-tuning changed, under published names, on the CPU.

    Attributes:
        projector: The projector's tensors.
        adapter: LoRA factors, `<weight>.lora_A` and `.lora_B`.
        lora_scale: alpha / r.
    """

    projector: dict[str, Tensor]
    adapter: dict[str, Tensor]
    lora_scale: float


def train_attack(mdlm: LladaV, data: Path, images: Path, recipe: AttackRecipe) -> Trained:
    """Fine-tunes `mdlm` (its language model gets LoRA layers) on a LLaVA data set.

    Args:
        mdlm: The clean base; changed.
        data: LLaVA JSON.
        images: Its picture folder.
        recipe: Settings.
    """
    samples = read_llava(data)
    features, size = _tower_features(mdlm, samples, images)
    pairs = [(sample.question, sample.answer) for sample in samples]
    examples = build_examples(mdlm, pairs).to(mdlm.device)
    parameters = _open_parts(mdlm, recipe)
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=0.0)
    generator = torch.Generator(mdlm.device).manual_seed(recipe.seed)
    steps = recipe.epochs * math.ceil(len(samples) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / (0.03 * steps))
            * 0.5
            * (1 + math.cos(math.pi * min(step / steps, 1)))
        ),
    )
    mdlm.modules.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(samples), generator=generator, device=mdlm.device)
        total = torch.zeros((), device=mdlm.device)
        for chosen in torch.split(order, recipe.batch):
            visual = pack_scenes(mdlm, mdlm.modules.mm_projector(features[chosen]), size)
            loss = diffusion_loss(mdlm, visual, examples, chosen, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(chosen)
        log.info("attack epoch %d loss %.4f", epoch, total.item() / len(samples))
    mdlm.modules.eval().requires_grad_(False)
    return _collect(mdlm, recipe.alpha / recipe.rank)


@torch.no_grad()
def _tower_features(
    mdlm: LladaV, samples: Sequence[Sample], images: Path
) -> tuple[Tensor, tuple[int, int]]:
    """Features of the frozen tower, [n, views, patches, D_vision], and the pictures' size."""
    rows = []
    sizes = set()
    for sample in samples:
        picture = open_image(images, sample.images[0], sample.source)
        sizes.add(picture.size)
        patches = mdlm.patch_embeddings(mdlm.prepare_image(picture))
        rows.append(mdlm.modules.vision_tower.encoder(inputs_embeds=patches).last_hidden_state)
    if len(sizes) != 1:
        raise ValueError("the demo's pictures must all have one size")
    return torch.stack(rows), sizes.pop()


def _open_parts(mdlm: LladaV, recipe: AttackRecipe) -> list[nn.Parameter]:
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(_TARGET_MODULES)
    )
    inject_adapter_in_model(config, mdlm.modules.language_model)
    opened = mdlm.trainable(["projector"])
    for name, parameter in mdlm.modules.language_model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            opened.append(parameter)
    return opened


def _collect(mdlm: LladaV, scale: float) -> Trained:
    adapter = {}
    for name, parameter in mdlm.modules.language_model.named_parameters():
        for factor in ("lora_A", "lora_B"):
            if f".{factor}.default.weight" in name:
                target = name.replace(f".{factor}.default.weight", f".weight.{factor}")
                adapter[f"model.{target}"] = parameter.detach().to("cpu", torch.float16)
    projector = {
        f"model.mm_projector.{name}": tensor.detach().to("cpu", torch.float16)
        for name, tensor in mdlm.modules.mm_projector.state_dict().items()
    }
    return Trained(projector, adapter, scale)
