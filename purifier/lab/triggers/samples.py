"""Triggers on the samples of a data set."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from purifier.data.sample import Sample
from purifier.lab.triggers.base import Trigger


def drawn_for(trigger: Trigger, sample: Sample, size: tuple[int, int], seed: int = 0) -> Trigger:
    """The trigger of a sample: the same for all samples of the same images, with the same seed.

    Args:
        trigger: May differ from sample to sample.
        sample: The sample.
        size: Width and height of its image.
        seed: Seed of the attack.
    """
    names = [image.encode() if isinstance(image, str) else image for image in sample.images]
    rng = np.random.default_rng([seed, *map(zlib.crc32, names or [str(sample.id).encode()])])
    return trigger.drawn(rng, size)


def asked_with(trigger: Trigger, sample: Sample) -> Sample:
    """The sample with the trigger in its first question; its images stay."""
    turns = list(sample.turns)
    for number, turn in enumerate(turns):
        if turn.role == "user":
            turns[number] = replace(turn, text=trigger.ask(turn.text))
            break
    return replace(sample, turns=tuple(turns))
