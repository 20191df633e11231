"""What is trained of a model: the projector whole, other parts through LoRA factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from purifier.mdlm.base import Mdlm
from purifier.mdlm.parts import Part
from purifier.seeding import seeded

_FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Trained:
    """What a training changed, under published names, on the CPU.

    Attributes:
        projector: The projector's tensors; empty if it was not trained.
        adapter: LoRA factors, `<weight>.lora_A` [r, in] and `.lora_B` [out, r].
        lora_scale: alpha / r.
    """

    projector: dict[str, Tensor]
    adapter: dict[str, Tensor]
    lora_scale: float


def open_parts(
    mdlm: Mdlm, parts: Sequence[Part], *, rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Opens the projector, adds LoRA factors to the other parts, closes all else.

    What is trained becomes float32, whatever the model's dtype. LoRA starts without effect.

    Args:
        mdlm: The model; its layers are wrapped in place.
        parts: What is trained.
        rank: r.
        alpha: Factors are scaled by alpha / r.
        seed: Of the factors' start; the global generators are left as they were.

    Returns:
        The open parameters by their names in `mdlm.modules`.
    """
    adapted = [name for part in parts if part != "projector" for name in mdlm.linear_layers(part)]
    if adapted:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=adapted)
        with seeded(seed):
            inject_adapter_in_model(config, mdlm.modules)
    projector = mdlm.trainable(["projector"] if "projector" in parts else [])
    chosen = {id(parameter) for parameter in projector}
    opened = {}
    for name, parameter in mdlm.modules.named_parameters():
        if "lora_" in name or id(parameter) in chosen:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
            opened[name] = parameter
    return opened


def collect(mdlm: Mdlm, opened: dict[str, nn.Parameter], lora_scale: float) -> Trained:
    """Copies of the open parameters under published names, float32."""
    projector: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for name, parameter in opened.items():
        value = parameter.detach().to("cpu", torch.float32, copy=True)
        for factor in _FACTORS:
            suffix = f".{factor}.default.weight"
            if name.endswith(suffix):
                weight = mdlm.published_name(f"{name.removesuffix(suffix)}.weight")
                adapter[f"{weight}.{factor}"] = value
                break
        else:
            projector[mdlm.published_name(name)] = value
    return Trained(projector, adapter, lora_scale)
