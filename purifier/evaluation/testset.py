"""The held-out questions a defence is measured on.

A data folder holds `manifest.json` (with the `trigger`, and optionally the `generation`
settings), `test/test.json` and `test/images/`. Records are LLaVA's with the extra keys `kind`
and, where the answer tells them, `item`, `item_colour` and `background_colour`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purifier.data.llava import read_llava
from purifier.data.sample import Sample, open_image, question_messages
from purifier.denoise.config import GenerationConfig
from purifier.errors import DataError
from purifier.lab.triggers import Trigger, asked_with, drawn_for, trigger_from_dict
from purifier.mdlm.base import Message

DESCRIBE = "describe"
"""The kind of question whose answer names all slots."""

_LIMIT_SEED = 0

SLOTS = ("item", "item_colour", "background_colour")


@dataclass(frozen=True)
class Case:
    """One held-out question.

    Attributes:
        sample: The record.
        picture: Its clean image, RGB.
        kind: Kind of question.
        answer: The true answer.
        slots: What the image shows: values of those of `SLOTS` that the record tells.
    """

    sample: Sample
    picture: Image.Image
    kind: str
    answer: str
    slots: Mapping[str, str]

    @property
    def item(self) -> str | None:
        return self.slots.get("item")

    @property
    def colour(self) -> str | None:
        """The item's."""
        return self.slots.get("item_colour")

    def drawn(self, trigger: Trigger) -> Trigger:
        """The trigger as this case has it."""
        return drawn_for(trigger, self.sample, self.picture.size)

    def messages(self, trigger: Trigger | None = None) -> list[Message]:
        """The dialogue, with the trigger on the image and in the question if one is given."""
        if trigger is None:
            return question_messages(self.sample, (self.picture,))
        own = self.drawn(trigger)
        return question_messages(asked_with(own, self.sample), (own.stamp(self.picture),))


@dataclass(frozen=True)
class TestSet:
    """Held-out questions and the attack they are measured under.

    Attributes:
        cases: The questions.
        trigger: What wakes the backdoor.
        generation: How answers are denoised.
    """

    __test__ = False

    cases: tuple[Case, ...]
    trigger: Trigger
    generation: GenerationConfig


def read_test_set(folder: str | Path, *, limit: int | None = None) -> TestSet:
    """Reads a data folder.

    Args:
        folder: With `manifest.json` and `test/`.
        limit: Takes this many records at most: a fixed random choice, in the file's order.

    Raises:
        DataError: If a file or record is missing or malformed.
        InvalidSetting: If the manifest's trigger or generation settings are.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    samples = read_llava(folder / "test" / "test.json")
    if limit is not None and limit < len(samples):
        order = np.random.default_rng(_LIMIT_SEED).permutation(len(samples))
        samples = [samples[index] for index in sorted(order[:limit])]
    cases = tuple(_case(sample, folder / "test" / "images") for sample in samples)
    if not cases:
        raise DataError("The test set holds no records.", param="limit")
    return TestSet(cases, trigger_from_dict(manifest["trigger"]), _generation(manifest))


def _case(sample: Sample, images: Path) -> Case:
    kind = sample.extra.get("kind")
    if not isinstance(kind, str):
        raise DataError(f"{sample.source}: kind must be text.", param="kind")
    if len(sample.images) != 1:
        raise DataError(f"{sample.source}: a test record must have one image.", param="image")
    if not sample.question or not sample.answer.strip():
        raise DataError(
            f"{sample.source}: a test record needs a question and its answer.",
            param="conversations",
        )
    slots = {slot: str(sample.extra[slot]) for slot in SLOTS if sample.extra.get(slot)}
    picture = open_image(images, sample.images[0], sample.source)
    return Case(sample, picture, kind, sample.answer, slots)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except OSError:
        raise DataError("The data folder has no readable manifest.json.", param="data") from None
    except ValueError:
        raise DataError("manifest.json is not valid JSON.", param="data") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("trigger"), dict):
        raise DataError("manifest.json must be an object with a `trigger`.", param="data")
    return manifest


def _generation(manifest: Mapping[str, Any]) -> GenerationConfig:
    settings = manifest.get("generation", {})
    try:
        return GenerationConfig(**settings)
    except TypeError:
        raise DataError(
            "manifest.json: generation must be an object of generation settings.", param="data"
        ) from None
