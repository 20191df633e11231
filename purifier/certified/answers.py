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
from collections.abc import Callable, Generator, Sequence
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
    steps = certifying(inputs, config)
    choices = next(steps)
    while True:
        answers: list[Answer] = []
        requests = [masked(mdlm, inputs, masks) for masks in choices]
        for group in groups(requests, generation.gen_length):
            check()
            answers += answer_batch(mdlm, group, generation=generation, check=check)
        try:
            choices = steps.send(answers)
        except StopIteration as end:
            found: Certified = end.value
            return found


def certifying(
    inputs: Inputs, config: CertifyConfig
) -> Generator[Sequence[Sequence[Mask]], Sequence[Answer], Certified]:
    """The steps of a certified answer, for whoever answers masked images in a way of their own.

    Yields:
        Choices of masks; it is sent the answer under each of them, in their order.

    Returns:
        What the masks agree on.
    """
    masks: list[Mask] = [
        (number, box)
        for number, image in enumerate(inputs.images)
        for box in covering(image.image.size, config)
    ]
    first = yield [[mask] for mask in masks] or [[]]
    said = [tuple(answer.token_ids) for answer in first]
    counts = Counter(said)
    (common, most), *_ = counts.most_common(1)
    agreement, answers = most / len(first), len(first)
    if most == len(first):
        return Certified(first[0], agreement, answers)
    rare = [number for number, ids in enumerate(said) if ids != common]
    rare.sort(key=lambda number: -counts[said[number]])
    for number in rare[: config.tries]:
        agree = True
        pairs = [[masks[number], mask] for mask in masks if mask != masks[number]]
        while pairs and agree:
            # A few at a time, for the first answer that differs ends it.
            now, pairs = pairs[: config.masks], pairs[config.masks :]
            second = yield now
            answers += len(now)
            agree = all(tuple(answer.token_ids) == said[number] for answer in second)
        if agree:
            return Certified(first[number], agreement, answers)
    return Certified(None, agreement, answers)


def masked(mdlm: Mdlm, inputs: Inputs, masks: Sequence[Mask]) -> Inputs:
    """A question with rectangles of its images filled."""
    images = [
        image
        if not (boxes := [box for owner, box in masks if owner == number])
        else mdlm.prepare_image(fill_from_around(image.image, boxes), n_images=len(inputs.images))
        for number, image in enumerate(inputs.images)
    ]
    return replace(inputs, images=tuple(images))
