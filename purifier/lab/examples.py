"""Training examples of the demo model: one image, one question, one answer.

All scenes have one size, so all prompts share the text before the image and the number
of visual tokens; what differs is the tail: question, assistant header, response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from purifier.denoise.training import draw_times, forward_process, masked_diffusion_loss
from purifier.mdlm.base import IMAGE_PLACEHOLDER, Message
from purifier.mdlm.llada_v.images import image_layout
from purifier.mdlm.llada_v.model import LladaV
from purifier.mdlm.llada_v.packing import pack

RESPONSE = 32
"""Response length in training, as in generation."""


@dataclass(frozen=True)
class Examples:
    """The text side of n examples.

    Attributes:
        prefix: int64 [P], ids before the image.
        tails: int64 [n, T], ids behind the image, right-padded.
        lengths: int64 [n], tail lengths.
        starts: int64 [n], where the response starts in its tail.
        answers: int64 [n], answer lengths in tokens, end of turn included.
    """

    prefix: Tensor
    tails: Tensor
    lengths: Tensor
    starts: Tensor
    answers: Tensor

    def to(self, device: torch.device) -> Examples:
        return Examples(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def build_examples(mdlm: LladaV, pairs: Sequence[tuple[str, str]]) -> Examples:
    """Tokenises (question, answer) pairs; the response is filled up with end-of-turn tokens.

    An answer that is longer than the response is cut.
    """
    tokenizer = mdlm.tokenizer
    blank = Image.new("RGB", (8, 8))
    prompts: dict[str, list[int]] = {}
    responses: dict[str, list[int]] = {}
    prefix: list[int] = []
    for question, answer in pairs:
        if question not in prompts:
            ids, _ = tokenizer.render([Message("user", (blank, question))])
            place = ids.index(IMAGE_PLACEHOLDER)
            prefix, prompts[question] = ids[:place], ids[place + 1 :]
        if answer not in responses:
            responses[answer] = tokenizer.encode(answer)[:RESPONSE]
    eot = mdlm.tokens.eot
    width = max(map(len, prompts.values())) + RESPONSE
    rows, lengths, starts, answers = [], [], [], []
    for question, answer in pairs:
        prompt, response = prompts[question], responses[answer]
        row = prompt + response + [eot] * (RESPONSE - len(response))
        rows.append(row + [mdlm.tokens.pad] * (width - len(row)))
        lengths.append(len(row))
        starts.append(len(prompt))
        answers.append(min(len(response) + 1, RESPONSE))
    columns = (rows, lengths, starts, answers)
    return Examples(torch.tensor(prefix), *(torch.tensor(column) for column in columns))


def pack_scenes(mdlm: LladaV, features: Tensor, size: tuple[int, int]) -> Tensor:
    """Visual tokens of equally sized scenes: [B, views, patches, D] -> [B, n, D]."""
    layout = image_layout(size, features.shape[1], mdlm.config)
    return pack(features, layout, mdlm.modules.image_newline)


def answer_places(examples: Examples, chosen: Tensor) -> Tensor:
    """Where the responses of some examples stand in their tails, int64 [B, RESPONSE]."""
    starts = examples.starts[chosen]
    return starts[:, None] + torch.arange(RESPONSE, device=starts.device)


def embed_examples(
    mdlm: LladaV, visual: Tensor, examples: Examples, tails: Tensor
) -> tuple[Tensor, int]:
    """Embeddings of a batch of examples, in the visual tokens' dtype.

    Args:
        mdlm: The model.
        visual: [B, n, D], visual tokens, masked or not.
        examples: Their prefix is used.
        tails: int64 [B, T], what stands behind the image.

    Returns:
        [B, P + n + T, D], and P + n, where the tails begin.
    """
    # Under autocast the visual tokens' dtype is the short one.
    prefix = mdlm.token_embeddings(examples.prefix).expand(len(tails), -1, -1)
    texts = (prefix.to(visual.dtype), mdlm.token_embeddings(tails).to(visual.dtype))
    return torch.cat([texts[0], visual, texts[1]], dim=1), prefix.shape[1] + visual.shape[1]


def diffusion_loss(
    mdlm: LladaV,
    visual: Tensor,
    examples: Examples,
    chosen: Tensor,
    generator: torch.Generator,
    *,
    filler_weight: float = 0.1,
) -> Tensor:
    """The loss of a batch of examples at random diffusion times.

    Args:
        mdlm: The model in training.
        visual: [B, n, D], visual tokens, masked or not.
        examples: On the model's device.
        chosen: int64 [B], which examples.
        generator: On the model's device.
        filler_weight: Weight of the end-of-turn tokens behind the first one.
    """
    tails, places = examples.tails[chosen], answer_places(examples, chosen)
    answers = examples.answers[chosen]
    device = tails.device
    t = draw_times(len(chosen), generator)
    uniform = torch.rand(places.shape, generator=generator, device=device)
    masked = forward_process(torch.ones_like(places, dtype=torch.bool), t, uniform)
    targets = tails.gather(1, places)
    noisy = tails.scatter(1, places, torch.where(masked, mdlm.tokens.mask, targets))
    embeds, offset = embed_examples(mdlm, visual, examples, noisy)
    steps = torch.arange(embeds.shape[1], device=device)
    real = steps < (examples.lengths[chosen] + offset)[:, None]
    attends = real[:, None, :].expand(-1, embeds.shape[1], -1)
    logits = mdlm.logits(embeds, places + offset, attends=attends)
    in_answer = torch.arange(RESPONSE, device=device) < answers[:, None]
    loss = masked_diffusion_loss(logits, targets, masked & in_answer, t, answers)
    filler = masked_diffusion_loss(
        logits, targets, masked & ~in_answer, t, (RESPONSE - answers).clamp(min=1)
    )
    return loss + filler_weight * filler
