"""The first denoising step: the prompt in front of a response of masks.

DiSP asks how much the model's first predictions depend on each piece of the image. The
response is masked throughout and nothing is suppressed. Scored are the positions of the first
block, and of later blocks as many as `MaskingConfig.scored_length` asks for: how an answer is cut
into blocks must not decide how much of it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purifier.denoise.cache import FirstPass
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Mdlm, Prompt
from purifier.mdlm.segments import KeyValues, Segment


@dataclass(frozen=True)
class Response:
    """The part of a sequence behind the prompt, as it is before the first step.

    Attributes:
        scored: Positions whose predictions are scored, G, from the start of the response.
        length: Masked positions.
        suffix: Ids of the fixed text behind them.
    """

    scored: int
    length: int
    suffix: tuple[int, ...] = ()

    @classmethod
    def of(cls, mdlm: Mdlm, generation: GenerationConfig, scored_length: int = 1) -> Response:
        """The response that `generation` will denoise.

        Args:
            mdlm: The model.
            generation: Denoising settings.
            scored_length: `MaskingConfig.scored_length`.
        """
        suffix = mdlm.encode_text(generation.suffix) if generation.suffix else []
        scored = scored_positions(generation, scored_length)
        return cls(scored, generation.gen_length, tuple(suffix))


def scored_positions(generation: GenerationConfig, scored_length: int) -> int:
    """How many positions of a response are scored."""
    return max(generation.block, min(scored_length, generation.gen_length))


@dataclass(frozen=True)
class FirstStepBatch:
    """Sequences of several requests as one right-padded batch.

    Attributes:
        embeds: [B, N, D].
        positions: int64 [B, G], the scored positions.
        lengths: int64 [B]; None if no row is padded.
    """

    embeds: Tensor
    positions: Tensor
    lengths: Tensor | None


@dataclass(frozen=True)
class FirstStep:
    """The first denoising step of one request as it was computed.

    Attributes:
        prompt: The request, masked or not.
        result: Its predictions at the scored positions, and keys and values.
    """

    prompt: Prompt
    result: FirstPass

    @property
    def logits(self) -> Tensor:
        """float32 [G, V], predictions at the scored positions."""
        return self.result.logits

    @property
    def cache(self) -> KeyValues:
        """Keys and values of prompt and response."""
        return self.result.stored


def first_steps(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> list[FirstStep]:
    """Runs the first step of several requests in one pass and keeps keys and values."""
    tail = response_tail(mdlm, response)
    segments = []
    for prompt in prompts:
        start = len(prompt.embeds)
        embeds = torch.cat([prompt.embeds.detach(), tail])
        wanted = range(start, start + response.scored)
        segments.append(Segment(embeds, 0, wanted, mdlm.key_values(len(embeds))))
    found = mdlm.segment_logits(segments)
    return [
        FirstStep(prompt, FirstPass(segment.cache, logits))
        for prompt, logits, segment in zip(prompts, found, segments, strict=True)
    ]


def response_tail(mdlm: Mdlm, response: Response) -> Tensor:
    """What stands behind a prompt before the first step, [R, D]: masks and suffix."""
    tail = [mdlm.mask_embedding.detach().expand(response.length, -1)]
    if response.suffix:
        ids = torch.tensor(response.suffix, device=mdlm.device)
        tail.append(mdlm.token_embeddings(ids).detach())
    return torch.cat(tail)


def first_step_batch(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> FirstStepBatch:
    """Puts the masked response behind every prompt; gradients flow to the prompts."""
    tail = response_tail(mdlm, response)
    rows = [torch.cat([prompt.embeds, tail]) for prompt in prompts]
    starts = torch.tensor([len(prompt.embeds) for prompt in prompts], device=mdlm.device)
    positions = starts[:, None] + torch.arange(response.scored, device=mdlm.device)
    lengths = torch.tensor([len(row) for row in rows], device=mdlm.device)
    padded = len({len(row) for row in rows}) > 1
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return FirstStepBatch(embeds, positions, lengths if padded else None)


def first_step_logits(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> Tensor:
    """Predictions at the scored positions before anything is denoised, float32 [B, G, V]."""
    batch = first_step_batch(mdlm, prompts, response)
    return mdlm.scored_logits(batch.embeds, batch.positions, batch.lengths)
