"""An answer to a question about an image, defended or not: the whole way in one place.

messages -> prepare -> encode -> saliency -> mask -> denoise -> text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import Defended, defend
from purifier.defense.plane import MaskedPlane
from purifier.denoise.config import GenerationConfig
from purifier.denoise.sampler import denoise
from purifier.denoise.state import DenoisingState
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

    All of them are denoised as one padded batch, whose memory grows with their number times
    the longest one; `defend` bounds its own share.
    """
    generation = generation or GenerationConfig()
    for inputs in requests:
        check_length(mdlm, inputs, generation)
    if masking is None:
        defended = [_undefended(mdlm, inputs) for inputs in requests]
    else:
        defended = defend(mdlm, requests, generation, masking, check=check)
    start = seconds(mdlm.device)
    states = denoise(mdlm, [item.prompt for item in defended], generation, check=check)
    spent = (seconds(mdlm.device) - start) / max(len(requests), 1)
    return [
        _answer(mdlm, item, state, spent, undefended=masking is None)
        for item, state in zip(defended, states, strict=True)
    ]


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


def _undefended(mdlm: Mdlm, inputs: Inputs) -> Defended:
    start = seconds(mdlm.device)
    with torch.no_grad():
        prompt = mdlm.embed(inputs)
    nothing = torch.zeros(0)
    timings = {"encode": seconds(mdlm.device) - start, "saliency": 0.0, "mask": 0.0}
    return Defended(prompt, nothing, nothing.bool(), (), timings)


def _answer(
    mdlm: Mdlm, item: Defended, state: DenoisingState, spent: float, *, undefended: bool
) -> Answer:
    return Answer(
        text=mdlm.decode(state.token_ids).strip(),
        token_ids=state.token_ids,
        finish_reason=state.finish_reason,
        prompt_tokens=state.prompt_length,
        n_visual_tokens=item.prompt.n_visual,
        n_units=item.n_units,
        saliency=None if undefended else item.saliency,
        masked=None if undefended else item.masked,
        planes=item.planes,
        timings={**item.timings, "denoise": spent},
        steps=state.steps_run,
    )
