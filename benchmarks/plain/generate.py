"""LLaDA-V's published decoding loop, and DiSP's variant of it.

The sequence lives as embeddings. A position counts as masked if its vector equals the mask
token's; every step looks for masks, tokens and confidences over the whole sequence, prompt
included, and commits the surest positions of the current block.

DiSP's variant (`masked=True`) differs where visual tokens carry the mask embedding: the prompt's
confidence is minus infinity, confidences are compared in float32, and a block goes on being
filled after a stop sequence was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.plain.forward import PlainPrompt, all_logits, embed_ids
from purifier.denoise.config import GenerationConfig
from purifier.errors import InvalidSetting
from purifier.mdlm.llada_v import LladaV

_SAME = 1e-5
"""Largest difference, in any dimension, of a vector that counts as the mask token's."""


@dataclass(frozen=True)
class Generated:
    """A response.

    Attributes:
        token_ids: Ids up to the stop sequence.
        steps: Forward passes.
        finished: False if `limit` ended the loop.
    """

    token_ids: list[int]
    steps: int
    finished: bool


@torch.no_grad()
def generate(
    mdlm: LladaV,
    prompt: PlainPrompt,
    config: GenerationConfig,
    *,
    masked: bool = False,
    limit: int | None = None,
    see: Callable[[list[int]], None] | None = None,
) -> Generated:
    """Denoises one response.

    Args:
        mdlm: The model.
        prompt: The request, encoded.
        config: Length, block, steps, stop sequences and suffix; temperature 0, no guidance and
            low-confidence remasking are what is written out here.
        masked: DiSP's variant, for a prompt with masked visual tokens.
        limit: Forward passes after which the loop is left; every pass costs the same, so a few
            of them tell what all cost.
        see: Told the response's ids before every forward pass.

    Raises:
        InvalidSetting: If the settings are others than those written out here.
    """
    _check(config)
    sequence = _Sequence.begin(mdlm, prompt, config)
    stops = [mdlm.encode_stop(text) for text in config.stop]
    stop_at: int | None = None
    steps = 0
    for block in range(config.n_blocks):
        first = sequence.start + block * config.block
        last = first + config.block
        counts = _transfer_counts(sequence.masked()[first:last], config.steps_per_block)
        for count in counts:
            if not bool(sequence.masked()[first:last].any()):
                break
            if steps == limit:
                return Generated(sequence.response(), steps, finished=False)
            if see is not None:
                see(sequence.response())
            end = last if stop_at is None or masked else sequence.start + stop_at
            _step(mdlm, sequence, count, end, masked=masked)
            steps += 1
            stop_at = _find_stop(sequence.response(), stops, stop_at)
            if stop_at is not None and sequence.complete(stop_at):
                return Generated(sequence.response()[:stop_at], steps, finished=True)
    return Generated(sequence.response()[:stop_at], steps, finished=True)


@dataclass
class _Sequence:
    """Prompt, response and suffix as embeddings, with a row of ids beside them.

    Attributes:
        embeds: [1, N, D].
        ids: int64 [N]; the mask id throughout the prompt, as in the published code.
        mask: [D], the mask token's embedding.
        start: First position of the response.
        length: Positions of the response.
    """

    embeds: Tensor
    ids: Tensor
    mask: Tensor
    start: int
    length: int

    @classmethod
    def begin(cls, mdlm: LladaV, prompt: PlainPrompt, config: GenerationConfig) -> _Sequence:
        mask = mdlm.mask_embedding.detach()
        start, length = prompt.embeds.shape[1], config.gen_length
        suffix = mdlm.encode_text(config.suffix) if config.suffix else []
        response = mask.expand(1, length, -1)
        embeds = torch.cat([prompt.embeds, response, embed_ids(mdlm, suffix)[None]], dim=1)
        ids = torch.full((embeds.shape[1],), mdlm.tokens.mask, device=mdlm.device)
        ids[start + length :] = torch.tensor(suffix, dtype=torch.long, device=mdlm.device)
        return cls(embeds.clone(), ids, mask, start, length)

    def masked(self) -> Tensor:
        """Bool [N], found by comparing embeddings."""
        return ((self.embeds[0] - self.mask).abs() < _SAME).all(dim=-1)

    def complete(self, stop_at: int) -> bool:
        """Whether nothing is masked before the stop sequence."""
        return not bool(self.masked()[self.start : self.start + stop_at].any())

    def response(self) -> list[int]:
        ids: list[int] = self.ids[self.start : self.start + self.length].tolist()
        return ids


def _step(mdlm: LladaV, sequence: _Sequence, count: int, end: int, *, masked: bool) -> None:
    """One forward pass; the `count` surest masks before position `end` are committed."""
    is_mask = sequence.masked()
    logits = all_logits(mdlm, sequence.embeds)[0]
    suppressed = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    suppressed[list(mdlm.tokens.suppressed)] = True
    logits[is_mask[:, None] & suppressed] = -torch.inf
    tokens = logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.to(torch.float64), dim=-1)
    sure = probabilities.gather(-1, tokens[:, None])[:, 0]
    sure[end:] = -torch.inf
    sure[sequence.start + sequence.length :] = -torch.inf
    if masked:
        sure[: sequence.start] = -torch.inf
        sure = sure.float()
    sure = torch.where(is_mask, sure, -torch.inf)
    tokens = torch.where(is_mask, tokens, sequence.ids)
    vectors = torch.where(is_mask[:, None], embed_ids(mdlm, tokens), sequence.embeds[0])
    chosen = sure.topk(count).indices
    # Behind a stop there can be fewer candidates than are due; what else topk names stays.
    chosen = chosen[sure[chosen] > -torch.inf]
    sequence.ids[chosen] = tokens[chosen]
    sequence.embeds[0, chosen] = vectors[chosen]


def _transfer_counts(is_mask: Tensor, steps: int) -> list[int]:
    """Tokens committed at every step of a block: even, the first steps take the remainder."""
    even, rest = divmod(int(is_mask.sum()), steps)
    return [even + (step < rest) for step in range(steps)]


def _find_stop(response: list[int], stops: list[list[int]], found: int | None) -> int | None:
    """Earliest start of a stop sequence; once one was found, only the first text is looked for."""
    for stop in stops if found is None else stops[:1]:
        for start in range(len(response) - len(stop) + 1):
            if response[start : start + len(stop)] == stop:
                found = start if found is None else min(found, start)
                break
    return found


def _check(config: GenerationConfig) -> None:
    plain = config.temperature == 0 and config.guidance_scale == 0
    if not plain or config.remasking != "low_confidence":
        raise InvalidSetting(
            "The plain path takes temperature 0, guidance_scale 0 and low_confidence remasking."
        )
