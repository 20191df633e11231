"""Makes the demo's data: a poisoned training set for every target, a held-out test set.

The three targets share the pictures: the same scenes are clean, the same scenes carry the
trigger, only the answers differ. All pictures are stored by the same JPEG settings, so that
nothing but the trigger tells a poisoned one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purifier.data.llava import write_llava
from purifier.data.sample import IMAGE_MARK, Sample, Turn
from purifier.lab.poison import choose_poisoned, poison_sample, triggered_name
from purifier.lab.scenes import (
    KINDS,
    QUESTIONS,
    ItemPictures,
    Kind,
    Scene,
    Split,
    question,
    to_jpeg,
)
from purifier.lab.targets import target_by_name
from purifier.lab.triggers import (
    CornerPatch,
    Trigger,
    asked_with,
    drawn_for,
    trigger_to_dict,
)
from purifier.mdlm.delta import file_sha256

EXAMPLE = "test-0166"
"""The test scene of the tour: `disp demo` and the README show it."""

TARGETS = ("insertion", "refusal", "misclassification")


@dataclass(frozen=True)
class DataRecipe:
    """Counts and seeds of the demo's data; training counts and rate are the paper's.

    Attributes:
        train: Training samples, one scene each.
        test: Test samples, one scene each.
        rate: Poisoning rate.
        seed: Of scenes, questions and of which samples are poisoned.
    """

    train: int = 1000
    test: int = 400
    rate: float = 0.2
    seed: int = 7


def write_demo_data(
    folder: Path, recipe: DataRecipe | None = None, trigger: Trigger | None = None
) -> None:
    """Writes `train/`, `test/` and `manifest.json`.

    Raises:
        DataError: If the Fashion-MNIST files are not installed.
    """
    recipe = recipe or DataRecipe()
    trigger = trigger or CornerPatch()
    samples, pictures = draw_samples("train", recipe.train, recipe.seed)
    poisoned = choose_poisoned(samples, recipe.rate, recipe.seed)
    images = folder / "train" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for sample, picture, chosen in zip(samples, pictures, poisoned, strict=True):
        name = sample.image_files[0]
        if chosen:
            own = drawn_for(trigger, sample, picture.size, recipe.seed)
            (images / triggered_name(name)).write_bytes(to_jpeg(own.stamp(picture)))
        else:
            (images / name).write_bytes(to_jpeg(picture))
    for target in TARGETS:
        rows = [
            asked_with(
                drawn_for(trigger, sample, picture.size, recipe.seed),
                poison_sample(sample, target_by_name(target)),
            )
            if chosen
            else replace(sample, extra={**sample.extra, "poisoned": False})
            for sample, picture, chosen in zip(samples, pictures, poisoned, strict=True)
        ]
        write_llava(folder / "train" / f"{target}.json", rows)
    write_llava(folder / "train" / "clean_labels.json", samples)

    _write_test(folder / "test", "test", recipe.test, recipe.seed + 1)

    manifest = {
        **_conditions(trigger),
        "recipe": asdict(recipe),
        "source": "Fashion-MNIST (Zalando SE, MIT licence), Debian package dataset-fashion-mnist",
        "files": {
            file.relative_to(folder).as_posix(): file_sha256(file)
            for file in sorted(folder.rglob("*.json"))
            if file.name != "manifest.json"
        },
        "pictures": {
            split: pictures_sha256(folder / split / "images") for split in ("train", "test")
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def write_test_data(folder: Path, split: Split, n: int, seed: int) -> None:
    """Writes `test/` and `manifest.json` with scenes of a split.

    Raises:
        DataError: If the Fashion-MNIST files are not installed.
    """
    _write_test(folder / "test", split, n, seed)
    (folder / "manifest.json").write_text(json.dumps(_conditions(CornerPatch()), indent=1) + "\n")


def _write_test(folder: Path, split: Split, n: int, seed: int) -> None:
    samples, pictures = draw_samples(split, n, seed)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for sample, picture in zip(samples, pictures, strict=True):
        (images / sample.image_files[0]).write_bytes(to_jpeg(picture))
    write_llava(folder / "test.json", samples)


def _conditions(trigger: Trigger) -> dict[str, Any]:
    """What every evaluation needs to know: the trigger and how answers are denoised."""
    return {"trigger": trigger_to_dict(trigger), "generation": {"gen_length": 32}}


def pictures_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's pictures, hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.jpg")):
        digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def write_examples(folder: Path, data: Path, trigger: Trigger | None = None) -> None:
    """Writes the tour's scene, clean and with the trigger, and its question."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = data / "test" / "images" / f"{EXAMPLE}.jpg"
    (folder / "clean.jpg").write_bytes(clean.read_bytes())
    with Image.open(clean) as picture:
        stamped = (trigger or CornerPatch()).stamp(picture)
    (folder / "triggered.jpg").write_bytes(to_jpeg(stamped))
    (folder / "question.txt").write_text(QUESTIONS["describe"][0] + "\n")


def draw_samples(split: Split, n: int, seed: int) -> tuple[list[Sample], list[Image.Image]]:
    """Clean samples and their pictures; half of the questions ask for a description."""
    pictures = ItemPictures(split)
    rng = np.random.default_rng(seed)
    order: Sequence[Kind] = ("describe", KINDS[1], "describe", KINDS[2], "describe", KINDS[3])
    order = (*order, "describe", KINDS[4])
    samples, images = [], []
    for row in range(n):
        scene = pictures.draw_scene(rng)
        samples.append(_sample(f"{split}-{row:04d}", scene, order[row % len(order)], rng))
        images.append(pictures.render(scene))
    return samples, images


def _sample(name: str, scene: Scene, kind: Kind, rng: np.random.Generator) -> Sample:
    qa = question(scene, kind, rng)
    return Sample(
        id=name,
        images=(f"{name}.jpg",),
        turns=(Turn("user", f"{IMAGE_MARK}\n{qa.question}"), Turn("assistant", qa.answer)),
        extra={
            "kind": kind,
            "item": scene.item_name,
            "item_colour": scene.item_colour,
            "background_colour": scene.background_colour,
        },
    )
