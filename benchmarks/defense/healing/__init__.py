"""The defences of the model: each makes another model, which then answers undefended."""

from benchmarks.defense.healing.base import Healed, ModelDefence
from benchmarks.defense.healing.drops import Drops
from benchmarks.defense.healing.named import HEALINGS
from benchmarks.defense.healing.relabelling import RELABELLINGS, Healing

__all__ = ["HEALINGS", "RELABELLINGS", "Drops", "Healed", "Healing", "ModelDefence"]
