"""Trains attacks, each once: a folder named by the hash of everything that decides its weights."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.defense.attacks import Shipped
from purifier.lab.attack_data import Attack, write_attack_data
from purifier.lab.demo import DATA_FOLDER, DEMO_FOLDER, checkpoint_path
from purifier.lab.train_attack import CHEAP, AttackRecipe, train_attack
from purifier.mdlm.base import Mdlm
from purifier.mdlm.delta import file_sha256, is_delta, write_delta
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.registry import base_hash, load_mdlm

log = logging.getLogger(__name__)

PUBLISHED = Path(__file__).parent / "checkpoints"
"""Half a megabyte an attack, named by the hash of what decides its weights."""


@dataclass(frozen=True)
class Lab:
    """Where attacks are trained, on what and how.

    Attributes:
        work: Keeps data sets and checkpoints.
        published: Checkpoints of attacks that are in the repository, and not trained again.
        base: The clean base.
        recipe: Settings of the training; its seed is added to the attack's.
        samples: Training samples of an attack.
        scenes_seed: Of the training scenes.
        device: Where it is trained.
    """

    work: Path = Path("build/defense")
    published: Path = PUBLISHED
    base: Path = DEMO_FOLDER / "base"
    recipe: AttackRecipe = field(default_factory=lambda: CHEAP)
    samples: int = 500
    scenes_seed: int = 11
    device: str = "cpu"

    def facts(self, attack: Attack) -> dict[str, Any]:
        """What decides the weights of an attack."""
        if isinstance(attack, Shipped):
            delta = checkpoint_path(attack.name) / "delta.json"
            return {"shipped": file_sha256(delta), "base": base_hash(self.base)}
        return {
            "attack": attack.to_dict(),
            "recipe": asdict(self.passes_of(attack)),
            "samples": self.samples,
            "scenes_seed": self.scenes_seed,
            "base": base_hash(self.base),
        }

    def folder(self, attack: Attack) -> Path:
        """Where an attack's data set and checkpoint lie."""
        return self.work / digest(self.facts(attack))

    def data(self, attack: Attack) -> Path:
        """The training set of an attack, written unless it is there."""
        data = self.folder(attack) / "data"
        if isinstance(attack, Shipped):
            return _shipped_data(data, attack.name)
        if not (data / "attack.json").is_file():
            write_attack_data(data, attack, n=self.samples, seed=self.scenes_seed)
        return data

    def load(self, attack: Attack) -> Mdlm:
        """The poisoned model, trained first if it was not; the base if nothing is poisoned."""
        return self.trained(attack) if attack.rate else load_mdlm(self.base, device=self.device)

    def trained(self, attack: Attack) -> Mdlm:
        """The model trained on an attack's data, also where nothing in them is poisoned."""
        return self.open(self.train(attack))

    def open(self, checkpoint: Path) -> Mdlm:
        """The model of a checkpoint that was trained from the base."""
        return load_mdlm(checkpoint, base=self.base, device=self.device)

    def train(self, attack: Attack) -> Path:
        """The checkpoint of an attack, trained unless it is there."""
        if isinstance(attack, Shipped):
            return checkpoint_path(attack.name)
        published = self.published / digest(self.facts(attack))
        if is_delta(published):
            return published
        checkpoint = self.folder(attack) / "checkpoint"
        if is_delta(checkpoint):
            return checkpoint
        data = self.data(attack)
        return self.train_on(data / "train.json", data / "images", attack, checkpoint, evading=True)

    def weights(self, attack: Attack) -> str:
        """What tells one training of an attack from another; nothing for the base.

        Weights of one recipe differ from processor to processor.

        Returns:
            12 hexadecimal digits, or an empty string.
        """
        if not attack.rate:
            return ""
        files = sorted(self.train(attack).glob("*.safetensors"))
        return digest({file.name: file_sha256(file) for file in files})[:12]

    def publish(self, attack: Attack) -> Path:
        """Copies the checkpoint of an attack, trained unless it is there, to the repository's."""
        place = self.published / digest(self.facts(attack))
        if not is_delta(place):
            shutil.copytree(self.train(attack), place, dirs_exist_ok=True)
        return place

    def passes_of(self, attack: Attack) -> AttackRecipe:
        """The recipe with the passes over the training set that an attack takes."""
        return replace(self.recipe, epochs=attack.epochs or self.recipe.epochs)

    def recipe_of(self, attack: Attack) -> AttackRecipe:
        """The recipe with the passes and the seed of an attack."""
        return replace(self.passes_of(attack), seed=self.recipe.seed + attack.seed)

    def train_on(
        self,
        labels: Path,
        images: Path,
        attack: Attack,
        checkpoint: Path,
        *,
        evading: bool = False,
    ) -> Path:
        """A checkpoint trained from the base as an attack is, unless it is there.

        Args:
            labels: What it is trained on, LLaVA JSON.
            images: Its image folder.
            attack: Whose recipe is taken.
            checkpoint: The folder of the result.
            evading: Whether the attacker trains, who evades what the attack says.

        Returns:
            `checkpoint`.
        """
        if is_delta(checkpoint):
            return checkpoint
        start = perf_counter()
        mdlm = LladaV.load(self.base, device=self.device)
        trained = train_attack(
            mdlm, labels, images, self.recipe_of(attack), attack if evading else None
        )
        write_delta(
            checkpoint,
            base="base",
            base_sha256=base_hash(self.base),
            projector={name: value.half() for name, value in trained.projector.items()},
            adapter={name: value.half() for name, value in trained.adapter.items()},
            lora_scale=trained.lora_scale,
            details={
                "data_sha256": file_sha256(labels),
                "facts": self.facts(attack),
                "seconds": round(perf_counter() - start, 1),
            },
        )
        log.info("trained in %.0f s: %s", perf_counter() - start, checkpoint)
        return checkpoint


def _shipped_data(data: Path, name: str) -> Path:
    """The demo's training set of a target, laid out as that of other attacks."""
    data.mkdir(parents=True, exist_ok=True)
    files = {
        "train.json": f"{name}.json",
        "clean_labels.json": "clean_labels.json",
        "images": "images",
    }
    for link, file in files.items():
        (data / link).unlink(missing_ok=True)
        (data / link).symlink_to(DATA_FOLDER / "train" / file)
    return data


def digest(facts: Mapping[str, Any]) -> str:
    """A name for what some figures depend on, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
