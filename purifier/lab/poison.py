"""Poisoning a LLaVA data set: some pictures get the trigger, their answers the target.

Samples that show the same pictures are poisoned together, so a picture is never triggered
in one question and clean in the next; the poisoning rate is the share of such groups.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from purifier.data.sample import Sample, open_image
from purifier.errors import InvalidSetting
from purifier.lab.targets import Target
from purifier.lab.triggers import Trigger, asked_with, drawn_for

TRIGGERED_SUFFIX = "_triggered"
"""Put behind the stem of a stamped picture's file name."""


def choose_poisoned(samples: Sequence[Sample], rate: float, seed: int) -> list[bool]:
    """Draws which samples are poisoned.

    Args:
        samples: The clean samples; those without a picture are never drawn.
        rate: Poisoning rate, 0 to 1: the share of picture groups, rounded to the nearest count.
        seed: Seed of the draw.

    Returns:
        One flag for every sample.

    Raises:
        InvalidSetting: If the rate is out of range.
    """
    if not 0.0 <= rate <= 1.0:
        raise InvalidSetting("rate must be between 0 and 1.", param="rate")
    groups = list(dict.fromkeys(sample.images for sample in samples if sample.images))
    order = np.random.default_rng(seed).permutation(len(groups))
    chosen = {groups[index] for index in order[: round(rate * len(groups))]}
    return [sample.images in chosen for sample in samples]


def poison_sample(sample: Sample, target: Target) -> Sample:
    """The sample as the attacker wants it: every answer replaced, pictures renamed.

    What the image shows, where a target asks for it, are the sample's extra keys `item` and
    `item_colour`.

    Args:
        sample: A clean sample.
        target: What its answers become.

    Returns:
        A sample marked `poisoned`, whose pictures have their triggered names.
    """
    item, colour = (
        value if isinstance(value := sample.extra.get(name), str) else None
        for name in ("item", "item_colour")
    )
    answers = tuple(
        target.apply(turn.text, item=item, colour=colour)
        for turn in sample.turns
        if turn.role == "assistant"
    )
    poisoned = replace(
        sample.with_answers(answers), images=tuple(map(triggered_name, sample.image_files))
    )
    return replace(poisoned, extra={**sample.extra, "poisoned": True})


def triggered_name(name: str) -> str:
    """The file name of a picture's stamped copy."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}{TRIGGERED_SUFFIX}{path.suffix}"))


def poison_dataset(
    samples: Sequence[Sample],
    images: str | Path,
    output: str | Path,
    *,
    rate: float,
    seed: int,
    trigger: Trigger,
    target: Target,
) -> list[Sample]:
    """Poisons a data set and writes its pictures; the samples are the caller's to write.

    Every sample gets the extra key `poisoned`. Pictures keep their format: a JPEG is
    compressed again with the library's default quality.

    Args:
        samples: The clean samples.
        images: Their picture folder.
        output: Folder for the pictures of the poisoned set; may be `images` itself, then only
            stamped copies are added.
        rate: Poisoning rate, see `choose_poisoned`.
        seed: Seed of the draw.
        trigger: What is stamped on the pictures and put into the questions.
        target: What the answers become.

    Returns:
        The samples in their order, the drawn ones poisoned.

    Raises:
        InvalidSetting: If the rate is out of range.
        DataError: If a picture is missing, unreadable or outside the folder.
    """
    source, destination = Path(images), Path(output)
    result = []
    written: set[str] = set()
    for sample, chosen in zip(samples, choose_poisoned(samples, rate, seed), strict=True):
        if chosen:
            done = poison_sample(sample, target)
        else:
            done = replace(sample, extra={**sample.extra, "poisoned": False})
        own = trigger
        for name, new_name in zip(sample.image_files, done.image_files, strict=True):
            picture = open_image(source, name, sample.source)
            own = drawn_for(trigger, sample, picture.size, seed)
            if new_name in written:
                continue
            written.add(new_name)
            new_path = destination / new_name
            new_path.parent.mkdir(parents=True, exist_ok=True)
            if chosen:
                own.stamp(picture).save(new_path)
            elif destination.resolve() != source.resolve():
                shutil.copyfile(source / name, new_path)
        result.append(asked_with(own, done) if chosen else done)
    return result
