"""The poisoned model is fine-tuned, mostly on labels of its own making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.defense.detection import detector_settings, fitted
from benchmarks.defense.healing.base import Healed
from benchmarks.defense.healing.drops import Drops
from benchmarks.defense.searches import searching
from benchmarks.defense.training import Lab, digest
from purifier.data.llava import read_llava, write_llava
from purifier.data.sample import Sample
from purifier.finetune import FinetuneConfig, FinetuneSpec, finetune
from purifier.lab.attack_data import Attack
from purifier.purify import PRESETS, Purifier, PurifyConfig

Labels = Literal["purified", "poisoned", "clean"]

PAPER = "DiSP, arXiv 2602.22246"
OWN = f"{PAPER}, with this product's masking"
NOTHING = "nothing"

TUNING = FinetuneConfig(batch_size=8, micro_batch_size=8, learning_rate=1e-3)
"""Small batches and a high rate, for the data sets are small: 40 steps of the default's 50 rows
leave a text trigger that turns answers into fragments."""


@dataclass(frozen=True)
class Healing:
    """A fine-tuning of the poisoned model.

    Attributes:
        labels: What it is trained on: masked answers, the poisoned set as it is, or the true
            labels under its images, which no defender has: an upper bound.
        purify: How masked answers are given.
        tuning: Settings of the training.
        source: Who proposed it.
        needs: What it needs besides the poisoned model and its training set.
    """

    labels: Labels = "purified"
    purify: PurifyConfig = field(default_factory=lambda: PRESETS["default"])
    tuning: FinetuneConfig = field(default_factory=lambda: TUNING)
    source: str = OWN
    needs: str = NOTHING

    @property
    def labelling(self) -> Mapping[str, Any]:
        """What decides the labels, JSON-ready."""
        if self.labels != "purified":
            return {"labels": self.labels}
        found: dict[str, Any] = {"labels": self.labels, "purify": self.purify.to_dict()}
        if self.purify.policy != "certified":
            found |= searching(self.purify.masking)
        return {**found, "detector": detector_settings()} if self.purify.detectors else found

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the healed weights, JSON-ready."""
        return {**self.labelling, "tuning": self.tuning.to_dict()}

    def healed(self, lab: Lab, attack: Attack) -> Healed:
        """The healed model; its labels and weights are kept in folders of the attack's."""
        folder = lab.folder(attack) / f"healed-{digest(self.settings)}"
        labels = lab.folder(attack) / f"labels-{digest(self.labelling)}.json"
        if not labels.is_file():
            samples = self._samples(lab, attack)
            part = labels.with_suffix(".part")
            write_llava(part, samples)
            part.replace(labels)
        output = finetune(
            FinetuneSpec(
                checkpoint=lab.train(attack),
                data=labels,
                images=lab.data(attack) / "images",
                output=folder / "checkpoint",
                work=folder / "work",
                base=lab.base,
                config=self.tuning,
                device=lab.device,
            )
        )
        before = read_llava(lab.data(attack) / "train.json")
        drops = Drops.between(before, read_llava(labels))
        return Healed(lab.open(output), drops.to_details() if drops.dropped else {})

    def _samples(self, lab: Lab, attack: Attack) -> list[Sample]:
        lab.train(attack)
        data = lab.data(attack)
        if self.labels == "clean":
            return read_llava(data / "clean_labels.json")
        samples = read_llava(data / "train.json")
        if self.labels == "poisoned":
            return samples
        mdlm = lab.load(attack)
        if self.purify.detectors:
            mdlm.detector = fitted(lab, attack, mdlm)
        rows = Purifier(mdlm, self.purify, data / "images").purify(samples)
        return [
            samples[row.record].with_answers(row.answers) if row.answers else samples[row.record]
            for row in rows
            if not row.dropped
        ]


MASKING_ALONE = replace(PRESETS["default"], detectors=())
"""The product's masking of each row by itself, without a search of the training set."""


def _relabelled(source: str = OWN, **masking: Any) -> Healing:
    purify = replace(MASKING_ALONE, masking=MASKING_ALONE.masking.adjusted(**masking))
    return Healing(purify=purify, source=source)


RELABELLINGS: Mapping[str, Healing] = {
    "fine-tuning, poisoned labels": Healing("poisoned", source="plain fine-tuning"),
    "purification, paper": Healing(purify=PRESETS["paper"], source=PAPER),
    "purification, default": Healing(),
    "purification, masking alone": _relabelled(),
    "purification, balanced": _relabelled(effort="balanced"),
    "purification, certified": Healing(
        purify=replace(MASKING_ALONE, policy="certified"), source="this product"
    ),
    "drop flagged": Healing(
        purify=replace(PRESETS["default"], policy="drop_flagged"), source="this product"
    ),
    "purification, random masks": _relabelled(
        "control of DiSP", ranker="random", ratio=0.3, threshold=0.0
    ),
    "fine-tuning, true labels": Healing(
        "clean", source="upper bound", needs="the true labels of all rows"
    ),
}
