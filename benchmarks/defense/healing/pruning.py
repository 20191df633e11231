"""Fine-pruning: units that clean data leave idle are cut out, then the model is fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.defense.healing.base import Healed
from benchmarks.defense.healing.clean_rows import CleanRows, read_clean_rows, write_clean_rows
from benchmarks.defense.training import Lab, digest
from purifier.lab.attack_data import Attack
from purifier.lab.train_attack import train_attack
from purifier.mdlm.delta import Delta, apply_delta
from purifier.mdlm.llada_v.model import LladaV


@dataclass(frozen=True)
class FinePruning:
    """Prunes the hidden units of the language model's feed-forward layers, least active first.

    In steps, the same share of every layer, until the clean accuracy has fallen by more than the
    tolerance; then one step back, and a fine-tuning on the clean rows with the attack's recipe.
    The accuracy is the share of masked answer tokens, at fixed diffusion times, whose likeliest
    prediction is right: one pass for hundreds of tokens, where exact answers would take a whole
    denoising to learn 50 outcomes, and of which, unlike of a loss, it can be said what a fall of
    4% means. The paper prunes the last convolution of a classifier; there is none here.

    Attributes:
        rows: Clean rows that the defender has: scenes of the training set without triggers, with
            their true labels.
        step: Share of every layer's units pruned in one step.
        tolerance: Fall of the clean accuracy that is borne.
        seed: Of the diffusion times and masks of the clean rows.
        version: Counted up when the same settings give other weights.
    """

    rows: int = 50
    step: float = 0.05
    tolerance: float = 0.04
    seed: int = 0
    version: int = 1

    source: ClassVar[str] = "Liu et al. 2018, arXiv 1805.12185"

    @property
    def needs(self) -> str:
        return f"{self.rows} clean rows"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"name": "fine-pruning", **asdict(self)}

    def healed(self, lab: Lab, attack: Attack) -> Healed:
        mdlm = lab.trained(attack)
        if not isinstance(mdlm, LladaV):
            raise TypeError("The lab's models are LLaDA-V's.")
        folder = lab.folder(attack) / f"pruned-{digest(self.settings)}"
        labels, images = write_clean_rows(folder, lab, self.rows)
        clean = read_clean_rows(mdlm, labels, images, self.seed)
        before = clean.accuracy(mdlm)
        pruned = prune(
            mdlm,
            activations(mdlm, clean),
            self.step,
            lambda: clean.accuracy(mdlm) >= before - self.tolerance,
        )
        details = {
            "pruned": round(pruned, 4),
            "clean_before": round(before, 4),
            "clean_after": round(clean.accuracy(mdlm), 4),
        }
        _tune(mdlm, labels, images, lab, attack)
        return Healed(mdlm, details)


@torch.no_grad()
def activations(mdlm: LladaV, clean: CleanRows) -> list[Tensor]:
    """Mean absolute activation of every hidden unit at the answer positions of clean rows.

    Returns:
        For every layer float32 [units].
    """
    layers = _down(mdlm)
    sums = [torch.zeros(layer.in_features, device=mdlm.device) for layer in layers]
    for part in clean.parts():
        handles = [
            layer.register_forward_pre_hook(_adding(part, total))
            for layer, total in zip(layers, sums, strict=True)
        ]
        try:
            part.right(mdlm)
        finally:
            for handle in handles:
                handle.remove()
    return [total / int(clean.answer.sum()) for total in sums]


def _adding(part: CleanRows, total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds up what a layer is given at the answer positions of some rows."""

    def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        places = part.positions[:, :, None].expand(-1, -1, args[0].shape[-1])
        asked = args[0].gather(1, places)[part.answer]
        total.add_(asked.float().abs().sum(0))

    return hook


@torch.no_grad()
def prune(
    mdlm: LladaV, active: Sequence[Tensor], step: float, still_good: Callable[[], bool]
) -> float:
    """Cuts units out, the least active of every layer first, and takes the last step back.

    A pruned unit stays dead in a later training: its gate and its input are zero, so no gradient
    reaches them, also where LoRA factors are added.

    Args:
        mdlm: The model; changed.
        active: Mean activation of the units of every layer.
        step: Share of every layer's units that goes in one step.
        still_good: Asked after every step; the first no ends the pruning.

    Returns:
        The share that was pruned.
    """
    orders = [units.argsort(stable=True) for units in active]
    whole = [layer.weight.detach().clone() for layer in _down(mdlm)]
    share = 0.0
    for number in range(1, round(1 / step)):
        _silence(mdlm, whole, orders, number * step)
        if not still_good():
            break
        share = number * step
    _silence(mdlm, whole, orders, share)
    for layer, order in zip(_layers(mdlm), orders, strict=True):
        idle = order[: round(share * len(order))]
        layer.mlp.gate_proj.weight[idle] = 0
        layer.mlp.up_proj.weight[idle] = 0
    return share


def _silence(mdlm: LladaV, whole: Sequence[Tensor], orders: Sequence[Tensor], share: float) -> None:
    """Takes the first units of every order out of the layers' outputs, and no others."""
    for layer, weight, order in zip(_down(mdlm), whole, orders, strict=True):
        layer.weight.copy_(weight)
        layer.weight[:, order[: round(share * len(order))]] = 0


def _tune(mdlm: LladaV, labels: Path, images: Path, lab: Lab, attack: Attack) -> None:
    """Fine-tunes a model on rows with an attack's recipe, and merges the change into it."""
    tuned = mdlm.with_modules(deepcopy(mdlm.modules))
    found = train_attack(tuned, labels, images, lab.recipe_of(attack))
    change = Delta(
        folder=labels.parent,
        base=lab.base,
        base_name="pruned",
        base_sha256="",
        lora_scale=found.lora_scale,
        tensors={**found.projector, **found.adapter},
    )
    apply_delta(mdlm, change)


def _layers(mdlm: LladaV) -> list[Any]:
    return list(mdlm.modules.language_model.layers)


def _down(mdlm: LladaV) -> list[nn.Linear]:
    """What the hidden units of every layer go through."""
    return [layer.mlp.down_proj for layer in _layers(mdlm)]
