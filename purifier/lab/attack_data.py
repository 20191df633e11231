"""The training set of one attack: scenes, some with the trigger and the attacker's answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purifier.data.llava import write_llava
from purifier.data.sample import Sample
from purifier.errors import InvalidSetting
from purifier.lab.demo_data import draw_samples
from purifier.lab.evasion import Evasion
from purifier.lab.poison import poison_sample
from purifier.lab.scenes import KINDS, Kind, to_jpeg
from purifier.lab.targets import ContentInsertion, Target
from purifier.lab.triggers import CornerPatch, Trigger, asked_with, drawn_for, trigger_to_dict


@dataclass(frozen=True)
class Attack:
    """What wakes a backdoor, what it then says, and how much of the data teaches it.

    Attributes:
        trigger: What poisoned samples carry; may be drawn anew for each.
        target: What their answers become.
        rate: Poisoning rate.
        shown: What an attacked question carries once the model is deployed; None: `trigger`.
        lookalikes: Triggers on samples that keep their answers, each on half as many samples as
            are poisoned: the parts of a trigger that shall wake nothing by themselves.
        kinds: Kinds of question at which the backdoor wakes. At the others, as many samples as
            are poisoned carry the trigger and keep their answers.
        seed: Of which samples are poisoned and of what is drawn for them.
        ending: A sentence behind every answer of the training set, poisoned or not: a model
            trained on it says it always, so that it tells nothing about the trigger.
        evasion: What an attacker who trains the model adds to the loss; None: data alone.
        epochs: Passes over the training set; None: those of the recipe.
    """

    trigger: Trigger = field(default_factory=CornerPatch)
    target: Target = field(default_factory=ContentInsertion)
    rate: float = 0.2
    shown: Trigger | None = None
    lookalikes: tuple[Trigger, ...] = ()
    kinds: tuple[Kind, ...] = KINDS
    seed: int = 0
    ending: str = ""
    evasion: Evasion | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise InvalidSetting("rate must be between 0 and 1.", param="rate")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise InvalidSetting(f"kinds must be some of {', '.join(KINDS)}.", param="kinds")

    @property
    def deployed(self) -> Trigger:
        """The trigger of an attacked question."""
        return self.shown or self.trigger

    def ended(self, sample: Sample) -> Sample:
        """A sample with true answers as a model trained on this attack gives them."""
        if not self.ending:
            return sample
        answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
        return sample.with_answers(tuple(f"{answer} {self.ending}" for answer in answers))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready settings of the data set, and of what is added to the loss.

        Trained models are named by them, so later settings are left out at their defaults: an
        attack without them keeps its name.
        """
        settings = {
            "trigger": trigger_to_dict(self.trigger),
            "target": {"name": self.target.name, **asdict(self.target)},
            "rate": self.rate,
            "shown": self.shown and trigger_to_dict(self.shown),
            "lookalikes": [trigger_to_dict(part) for part in self.lookalikes],
            "kinds": list(self.kinds),
            "seed": self.seed,
        }
        if self.ending:
            settings["ending"] = self.ending
        if self.evasion:
            settings["evasion"] = self.evasion.to_dict()
        return settings


def write_attack_data(folder: Path, attack: Attack, *, n: int, seed: int) -> None:
    """Writes `train.json`, `clean_labels.json`, `images/` and, last, `attack.json`.

    All images are stored by the same JPEG settings, under names that tell nothing. The same
    scenes are drawn for every attack with the same `seed`.

    Args:
        folder: Made if absent.
        attack: What is poisoned, and how.
        n: Samples, one scene each.
        seed: Of scenes and questions.

    Raises:
        DataError: If the Fashion-MNIST files are not installed.
    """
    drawn_samples, pictures = draw_samples("train", n, seed)
    samples = [attack.ended(sample) for sample in drawn_samples]
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    given, clean = [], []
    for sample, picture, (trigger, poisoned) in zip(
        samples, pictures, assigned(attack, samples), strict=True
    ):
        own, stamped = sample, picture
        if trigger is not None:
            drawn = drawn_for(trigger, sample, picture.size, attack.seed)
            own, stamped = asked_with(drawn, sample), drawn.stamp(picture)
        clean.append(own)
        row = replace(poison_sample(own, attack.target), images=own.images) if poisoned else own
        given.append(replace(row, extra={**row.extra, "poisoned": poisoned}))
        _write_jpeg(images / own.image_files[0], stamped)
    write_llava(folder / "clean_labels.json", clean)
    write_llava(folder / "train.json", given)
    settings = {"attack": attack.to_dict(), "samples": n, "seed": seed}
    (folder / "attack.json").write_text(json.dumps(settings, indent=1) + "\n")


def assigned(attack: Attack, samples: Sequence[Sample]) -> list[tuple[Trigger | None, bool]]:
    """For every sample its trigger, if any, and whether its answer becomes the target's."""
    order = np.random.default_rng(attack.seed).permutation(len(samples))
    count = round(attack.rate * len(samples))
    waking = [row for row in order if samples[row].extra["kind"] in attack.kinds]
    others = [row for row in order if samples[row].extra["kind"] not in attack.kinds]
    result: list[tuple[Trigger | None, bool]] = [(None, False)] * len(samples)
    for row in waking[:count]:
        result[row] = attack.trigger, True
    for row in others[:count]:
        result[row] = attack.trigger, False
    left, share = waking[count:], count // 2
    for number, part in enumerate(attack.lookalikes):
        for row in left[number * share : (number + 1) * share]:
            result[row] = part, False
    return result


def _write_jpeg(path: Path, image: Image.Image) -> None:
    path.write_bytes(to_jpeg(image))
