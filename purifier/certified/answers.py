"""An answer that the masked images agree on.

    every mask m of the covering family:  y_m = answer(image with m filled)
    all y_m are y                         -> y
    else, for some mask m whose y_m is rare:
        every mask n:  y_mn = answer(image with m and n filled)
        all y_mn are y                    -> y
    else                                  -> no answer

Let the trigger lie inside one window of one image. Some mask n hides it. Whatever is accepted is
what the model answers to an image in which n is filled, alone or with m; and what is filled in
depends on no hidden pixel. So the answer is one that the model gives to an image without the
trigger: no content of the window can make it say anything else. That holds for any model, any
trigger and any mask m, and so the rare answers may choose it (PatchCleanser, arXiv 2108.09135).

It does not say that the answer is right, nor anything of a trigger in the text, of one that is
larger, or of one that lies in several windows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from purifier.answer import Answer, answer_batch
from purifier.certified.config import CertifyConfig
from purifier.certified.covering import PixelBox, covering
from purifier.certified.fill import fill_from_around
from purifier.defense.defend import groups
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting
from purifier.mdlm.base import Inputs, Mdlm

Mask = tuple[int, PixelBox]
"""Number of an image, and the rectangle of it that is filled."""


@dataclass(frozen=True)
class Certified:
    """What the masked images say to one question.

    Attributes:
        answer: What they agree on; None if they do not.
        agreement: Share of the masks whose answer is the commonest one.
        answers: Masked images that were answered.
    """

    answer: Answer | None
    agreement: float
    answers: int


def require_deterministic(generation: GenerationConfig) -> None:
    """Checks that an answer depends on the image and the question alone.

    Raises:
        InvalidSetting: If it is drawn at random.
    """
    if generation.temperature > 0:
        raise InvalidSetting(
            "temperature must be 0 for certified answers: they must not be drawn at random.",
            param="temperature",
        )
    if generation.remasking == "random":
        raise InvalidSetting(
            "remasking must not be random for certified answers.", param="remasking"
        )


def certified_answer(
    mdlm: Mdlm,
    inputs: Inputs,
    generation: GenerationConfig,
    config: CertifyConfig,
    *,
    check: Callable[[], None] = lambda: None,
) -> Certified:
    """Answers a question if no window of its images decides what is said.

    Args:
        mdlm: The model; nothing is assumed about it.
        inputs: From `mdlm.prepare`; without an image there is nothing to hide, and the answer
            is the model's own.
        generation: How answers are denoised; nothing may be drawn at random.
        config: How large a window is.
        check: Called between the passes; what it raises ends the work.

    Raises:
        InvalidSetting: If answers are drawn at random.
    """
    require_deterministic(generation)
    if not inputs.images:
        own = answer_batch(mdlm, [inputs], generation=generation, check=check)[0]
        return Certified(own, 1.0, 1)
    asked = _Asked(mdlm, inputs, generation, check)
    masks: list[Mask] = [
        (number, box)
        for number, image in enumerate(inputs.images)
        for box in covering(image.image.size, config)
    ]
    first = asked.answers([[mask] for mask in masks])
    said = [tuple(answer.token_ids) for answer in first]
    counts = Counter(said)
    (common, most), *_ = counts.most_common(1)
    agreement = most / len(masks)
    if most == len(masks):
        return Certified(first[0], agreement, asked.count)
    rare = [number for number, ids in enumerate(said) if ids != common]
    rare.sort(key=lambda number: -counts[said[number]])
    for number in rare[: config.tries]:
        pairs = [[masks[number], mask] for mask in masks if mask != masks[number]]
        parts = (pairs[at : at + config.masks] for at in range(0, len(pairs), config.masks))
        if all(
            tuple(answer.token_ids) == said[number]
            for part in parts
            for answer in asked.answers(part)
        ):
            return Certified(first[number], agreement, asked.count)
    return Certified(None, agreement, asked.count)


@dataclass
class _Asked:
    """One question, asked about its images with rectangles filled; counts the answers."""

    mdlm: Mdlm
    inputs: Inputs
    generation: GenerationConfig
    check: Callable[[], None]
    count: int = 0

    def answers(self, choices: Sequence[Sequence[Mask]]) -> list[Answer]:
        requests = [masked(self.mdlm, self.inputs, masks) for masks in choices]
        found: list[Answer] = []
        for group in groups(requests, self.generation.gen_length):
            self.check()
            found += answer_batch(self.mdlm, group, generation=self.generation, check=self.check)
        self.count += len(found)
        return found


def masked(mdlm: Mdlm, inputs: Inputs, masks: Sequence[Mask]) -> Inputs:
    """A question with rectangles of its images filled."""
    images = [
        image
        if not (boxes := [box for owner, box in masks if owner == number])
        else mdlm.prepare_image(fill_from_around(image.image, boxes), n_images=len(inputs.images))
        for number, image in enumerate(inputs.images)
    ]
    return replace(inputs, images=tuple(images))
