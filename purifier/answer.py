"""An answer to a question about an image, defended or not: the whole way in one place.

messages -> prepare -> encode -> saliency -> mask -> denoise -> text

`answer_batch` goes the whole way. Who steps several answers together, joining and leaving
between steps, goes it in parts: `begin_batch`, `denoising_step` until done, `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import Defended, defend
from purifier.defense.plane import MaskedPlane
from purifier.denoise import DenoisingState, GenerationConfig, denoising_step
from purifier.detection.guard import Detection
from purifier.errors import PromptTooLong
from purifier.mdlm.base import Inputs, Mdlm, Message
from purifier.numeric import seconds


@dataclass(frozen=True)
class Answer:
    """One answer and the evidence of how it came about.

    Attributes:
        text: The answer.
        token_ids: Its ids, up to the stop sequence.
        finish_reason: `stop` if a stop sequence ended it, `length` otherwise.
        prompt_tokens: Prompt length in positions, images expanded.
        n_visual_tokens: Visual tokens of all images.
        n_units: What the mask ratio counts: visual tokens (`token`) or cells of the image
            planes (`patch`); 0 if undefended.
        saliency: float32 [n_units]; None if undefended.
        masked: bool [n_units]; None if undefended.
        planes: The same on the plane of every image; empty if undefended.
        timings: Seconds by part: `encode`, `saliency`, `mask`, `denoise`. Requests answered
            together share the time of a part evenly.
        steps: Denoising steps run.
        detection: What the model's detector says; None without one, or if undefended.
        unexplained: See `purifier.defense.defend.Defended`.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    n_visual_tokens: int
    n_units: int
    saliency: Tensor | None
    masked: Tensor | None
    planes: tuple[MaskedPlane, ...]
    timings: dict[str, float]
    steps: int
    detection: Detection | None = None
    unexplained: bool = False


@dataclass(eq=False)
class Begun:
    """An answer on its way: defended, and as far denoised as its state says.

    Attributes:
        defended: The prompt, masked or not, and what it was masked by.
        state: The response.
        undefended: Whether no defence was asked for.
        denoise_seconds: Seconds of its denoising steps so far; whoever steps it adds them.
    """

    defended: Defended
    state: DenoisingState
    undefended: bool
    denoise_seconds: float = 0.0


def answer(
    mdlm: Mdlm,
    image: Image.Image | Sequence[Image.Image] | None,
    question: str,
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
) -> Answer:
    """Answers one question about one image, several, or none. `masking=None` is undefended.

    Raises:
        InvalidPrompt: If the question is empty, an image is unusable, or the prompt too long.
    """
    inputs = mdlm.prepare(user_messages(image, question))
    return answer_inputs(mdlm, inputs, generation=generation, masking=masking)


def answer_inputs(
    mdlm: Mdlm,
    inputs: Inputs,
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
    check: Callable[[], None] | None = None,
) -> Answer:
    """Answers a prepared request.

    Args:
        mdlm: The model.
        inputs: From `mdlm.prepare`.
        generation: Denoising settings; defaults of `GenerationConfig`.
        masking: The defence; None answers undefended.
        check: Called between the parts, between the passes that saliency takes and before
            every denoising step; what it raises ends the generation (cancellation, deadlines).
    """
    return answer_batch(mdlm, [inputs], generation=generation, masking=masking, check=check)[0]


def answer_batch(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    *,
    generation: GenerationConfig | None = None,
    masking: MaskingConfig | None = None,
    check: Callable[[], None] | None = None,
) -> list[Answer]:
    """Answers several prepared requests together; each as it would be answered alone.

    All of them are denoised together, so memory grows with the sum of their lengths; `defend`
    bounds its own share.
    """
    begun = begin_batch(mdlm, requests, generation, masking, check=check)
    start = seconds(mdlm.device)
    while running := [item.state for item in begun if not item.state.done]:
        if check is not None:
            check()
        denoising_step(mdlm, running)
    spent = (seconds(mdlm.device) - start) / max(len(requests), 1)
    for item in begun:
        item.denoise_seconds += spent
    return [finish(mdlm, item) for item in begun]


def begin_batch(
    mdlm: Mdlm,
    requests: Sequence[Inputs],
    generation: GenerationConfig | None,
    masking: MaskingConfig | None,
    *,
    check: Callable[[], None] | None = None,
    clock: Callable[[], float] | None = None,
) -> list[Begun]:
    """Encodes, scores and masks several prepared requests; what is left is to denoise them.

    Args:
        mdlm: The model.
        requests: From `mdlm.prepare`.
        generation: Denoising settings; defaults of `GenerationConfig`.
        masking: The defence; None defends none of them.
        check: As for `answer_inputs`.
        clock: As for `defend`.

    Raises:
        PromptTooLong: If prompt and response do not fit the model's context.
        PurifierError: If the saliency of a request is not finite.
    """
    generation = generation or GenerationConfig()
    for inputs in requests:
        check_length(mdlm, inputs, generation)
    if masking is None:
        defended = [undefended(mdlm, inputs) for inputs in requests]
    else:
        defended = defend(mdlm, requests, generation, masking, check=check, clock=clock)
    return [begin(mdlm, item, generation, undefended=masking is None) for item in defended]


def begin(
    mdlm: Mdlm, defended: Defended, generation: GenerationConfig, *, undefended: bool = False
) -> Begun:
    """Begins to denoise from a prompt that is defended, or from one that shall not be."""
    state = DenoisingState(mdlm, defended.prompt, generation, first=defended.first)
    # The state alone holds the first step from here on, for as long as it is of use.
    return Begun(replace(defended, first=None), state, undefended)


def finish(mdlm: Mdlm, begun: Begun) -> Answer:
    """The answer as far as it has been denoised; whole once `begun.state.done`."""
    item, state = begun.defended, begun.state
    return Answer(
        text=mdlm.decode(state.token_ids).strip(),
        token_ids=state.token_ids,
        finish_reason=state.finish_reason,
        prompt_tokens=state.prompt_length,
        n_visual_tokens=item.prompt.n_visual,
        n_units=item.n_units,
        saliency=None if begun.undefended else item.saliency,
        masked=None if begun.undefended else item.masked,
        planes=item.planes,
        timings={**item.timings, "denoise": begun.denoise_seconds},
        steps=state.steps_run,
        detection=item.detection,
        unexplained=item.unexplained,
    )


def undefended(mdlm: Mdlm, inputs: Inputs) -> Defended:
    """A request as it is: encoded, and nothing masked."""
    start = seconds(mdlm.device)
    with torch.no_grad():
        prompt = mdlm.embed(inputs)
    nothing = torch.zeros(0)
    timings = {"encode": seconds(mdlm.device) - start, "saliency": 0.0, "mask": 0.0}
    return Defended(prompt, nothing, nothing.bool(), (), timings)


def check_length(mdlm: Mdlm, inputs: Inputs, generation: GenerationConfig) -> None:
    """Checks that prompt and response fit the model's context; uses no weights.

    Raises:
        PromptTooLong: If they do not.
    """
    suffix = len(mdlm.encode_text(generation.suffix)) if generation.suffix else 0
    response = generation.gen_length + suffix
    total = inputs.length + response
    if total > mdlm.max_length:
        raise PromptTooLong(
            f"The prompt has {inputs.length} positions, images included; with a response of "
            f"{response} tokens that exceeds the model's {mdlm.max_length}. Shorten "
            "the text, send fewer images or ask for fewer tokens.",
            param="messages",
        )


def user_messages(
    image: Image.Image | Sequence[Image.Image] | None, question: str
) -> list[Message]:
    """The dialogue of a single question."""
    if image is None:
        images: Sequence[Image.Image] = ()
    else:
        images = (image,) if isinstance(image, Image.Image) else tuple(image)
    return [Message("user", (*images, question))]
