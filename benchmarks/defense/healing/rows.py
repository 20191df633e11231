"""The rows of a training set as the compromised model is asked about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from purifier.data.sample import Sample, open_image
from purifier.lab.examples import RESPONSE
from purifier.mdlm.base import Mdlm, Prompt
from purifier.purification.dialogue import image_prompt

LENGTH = RESPONSE
"""Masks behind every question, as in the attack's training."""

POSITIONS = 8
"""Answer positions, from the first on, whose states and attention are averaged."""

BATCH = 16
"""Rows in one pass."""


@dataclass(frozen=True)
class Batch:
    """Some rows.

    Attributes:
        prompts: Image and question of each.
        labels: Ids of each label, at most `LENGTH`.
    """

    prompts: list[Prompt]
    labels: list[list[int]]


@torch.no_grad()
def batches(mdlm: Mdlm, samples: Sequence[Sample], images: Path) -> Iterator[Batch]:
    """All rows in their order, encoded with their images seen.

    Args:
        mdlm: The model.
        samples: Rows with one question each.
        images: Folder of the image files.
    """
    left = iter(samples)
    while rows := list(islice(left, BATCH)):
        asked = []
        for row in rows:
            pictures = [open_image(images, image, row.source) for image in row.images]
            asked.append(mdlm.prepare(image_prompt(pictures, row.question)))
        labels = [mdlm.encode_text(row.answer.strip())[:LENGTH] for row in rows]
        yield Batch(mdlm.embed_all(asked), labels)
