"""Data filters: rows that look poisoned are dropped, and the base is trained on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from benchmarks.defense.healing.base import Healed
from benchmarks.defense.healing.drops import Drops
from benchmarks.defense.training import Lab, digest
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample
from purifier.lab.attack_data import Attack
from purifier.mdlm.base import Mdlm


class RowFilter(Protocol):
    """Tells which rows look poisoned, without clean data."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name, version and whatever else decides its choice, JSON-ready."""

    @property
    def source(self) -> str:
        """Who proposed it."""

    @property
    def guesses(self) -> bool:
        """Whether it needs a guess of the poisoning rate."""

    def drops(self, mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Tensor:
        """Which rows are dropped, bool [N].

        Args:
            mdlm: The compromised model.
            samples: Its training set.
            images: Folder of the image files.
        """


@dataclass(frozen=True)
class Filtering:
    """Training from the base, with the attack's own recipe, on the rows that a filter keeps.

    Attributes:
        rows: The filter.
    """

    rows: RowFilter

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"filter": dict(self.rows.settings)}

    @property
    def source(self) -> str:
        return self.rows.source

    @property
    def needs(self) -> str:
        base = "the base, and a training from it"
        return f"{base}; a guess of the poisoning rate" if self.rows.guesses else base

    def healed(self, lab: Lab, attack: Attack) -> Healed:
        """The model; rows that were kept and weights lie in a folder of the attack's."""
        folder = lab.folder(attack) / f"filtered-{digest(self.settings)}"
        labels = folder / "train.json"
        data = lab.data(attack)
        samples = read_llava(data / "train.json")
        if not labels.is_file():
            dropped = self.rows.drops(lab.trained(attack), samples, data / "images").tolist()
            folder.mkdir(parents=True, exist_ok=True)
            kept = [row for row, drop in zip(samples, dropped, strict=True) if not drop]
            write_llava(labels, kept)
        found = Drops.between(samples, read_llava(labels))
        if not found.dropped:
            # Training again on all rows, with the same recipe and seed, gives the same model.
            return Healed(lab.trained(attack), found.to_details())
        checkpoint = lab.train_on(labels, data / "images", attack, folder / "checkpoint")
        return Healed(lab.open(checkpoint), found.to_details())
