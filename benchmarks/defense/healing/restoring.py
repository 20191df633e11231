"""Defences that put weights of the base back. They train nothing, and need the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from benchmarks.defense.healing.base import Healed
from benchmarks.defense.training import Lab
from purifier.lab.attack_data import Attack
from purifier.mdlm.delta import apply_delta, changed_weights, read_delta
from purifier.mdlm.registry import load_mdlm

FACTORS = (".lora_A", ".lora_B")
"""How the names of the language model's changes end in a delta."""

SOURCE = "baseline of PSR, Liu et al. 2026"


@dataclass(frozen=True)
class ProjectorReset:
    """The compromised model with the projector of its base.

    Attributes:
        version: Counted up when the same settings give other weights.
    """

    version: int = 1

    source: ClassVar[str] = f"full restore, {SOURCE}"
    needs: ClassVar[str] = "the base"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"restore": "projector", **asdict(self)}

    def healed(self, lab: Lab, attack: Attack) -> Healed:
        delta = read_delta(lab.train(attack), base=lab.base)
        adapter = {name: value for name, value in delta.tensors.items() if name.endswith(FACTORS)}
        mdlm = load_mdlm(lab.base, device=lab.device)
        apply_delta(mdlm, replace(delta, tensors=adapter))
        return Healed(mdlm)


@dataclass(frozen=True)
class RandomRestore:
    """A random share of all changed weights goes back to the base's, each weight by itself.

    LoRA factors are multiplied out first: what is drawn are entries of the weights they change.

    Attributes:
        share: Chance of a weight to go back.
        seed: Of the draw.
        version: Counted up when the same settings give other weights.
    """

    share: float = 0.3
    seed: int = 0
    version: int = 1

    source: ClassVar[str] = f"random restore, {SOURCE}"
    needs: ClassVar[str] = "the base"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"restore": "random", **asdict(self)}

    @torch.no_grad()
    def healed(self, lab: Lab, attack: Attack) -> Healed:
        delta = read_delta(lab.train(attack), base=lab.base)
        mdlm = load_mdlm(lab.base, device=lab.device)
        weights = mdlm.published_weights()
        generator = torch.Generator().manual_seed(self.seed)
        for name, changed in changed_weights(mdlm, delta):
            back = torch.rand(changed.shape, generator=generator) < self.share
            weights[name].copy_(torch.where(back.to(changed.device), weights[name], changed))
        return Healed(mdlm)
