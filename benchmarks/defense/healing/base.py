"""What a defence of the model is: it makes another model, which then answers undefended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from benchmarks.defense.training import Lab
from purifier.lab.attack_data import Attack
from purifier.mdlm.base import Mdlm


@dataclass(frozen=True)
class Healed:
    """A model that was healed.

    Attributes:
        mdlm: The model.
        details: What else the defence says of its work, JSON-ready: `drops` (see `Drops`), or
            what was pruned.
    """

    mdlm: Mdlm
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class ModelDefence(Protocol):
    """A defence that changes the model, or trains another one."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the healed weights, JSON-ready."""

    @property
    def source(self) -> str:
        """Who proposed it."""

    @property
    def needs(self) -> str:
        """What it needs besides the compromised model and its training set."""

    def healed(self, lab: Lab, attack: Attack) -> Healed:
        """The model of an attack, healed. The attack is trained first if it was not."""
