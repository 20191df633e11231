"""The forward passes of a denoising step: whole sequences, or parts on stored features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from purifier.denoise.cache import ResponseCache, ResponseFeatures
from purifier.denoise.state import DenoisingState
from purifier.mdlm.base import Mdlm
from purifier.mdlm.segments import FeaturePass, Segment

PADDED_TOGETHER = 8192
"""Positions up to which padding may double a pass: one pass is faster than two small ones."""


def candidate_logits(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[list[int]]
) -> list[Tensor]:
    """Predictions at the candidates of every state, float32 [P, V] each.

    States without a cache share padded passes, those with keys and values stored one without
    padding; each `dllm` state runs alone.
    """
    result: dict[int, Tensor] = {}
    exact = [row for row, state in enumerate(states) if state.cache is None]
    if exact:
        chosen = [states[row] for row in exact]
        found = _exact_logits(mdlm, chosen, [candidates[row] for row in exact])
        result.update(zip(exact, found, strict=True))
    for row, state in enumerate(states):
        if isinstance(state.cache, ResponseCache) and state.cache.first is not None:
            result[row] = state.cache.first.clone()
    parts = [
        _Part(mdlm, row, state, state.cache, candidates[row])
        for row, state in enumerate(states)
        if isinstance(state.cache, ResponseCache) and row not in result
    ]
    if parts:
        result.update(_segment_logits(mdlm, parts))
    for row, state in enumerate(states):
        if isinstance(state.cache, ResponseFeatures):
            result[row] = _feature_logits(mdlm, state, state.cache, candidates[row])
    return [result[row] for row in range(len(states))]


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: logits pushed away from those of a masked prompt."""
    return unconditional + (scale + 1) * (conditional - unconditional)


def _exact_logits(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[list[int]]
) -> list[Tensor]:
    """Whole sequences, in one right-padded pass unless their lengths differ much."""
    result: dict[int, Tensor] = {}
    for group in _groups(states):
        chosen = [states[row] for row in group]
        found = _padded_logits(mdlm, chosen, [candidates[row] for row in group])
        result.update(zip(group, found, strict=True))
    return [result[row] for row in range(len(states))]


def _groups(states: Sequence[DenoisingState]) -> Iterator[list[int]]:
    """Rows that share a pass, the shortest first.

    Who bounds the memory of a batch counts the positions of its sequences. Padded, a pass must
    not have more of them than all states together; twice as many while that is little.
    """
    total = sum(state.length * _sequences(state) for state in states)
    most = max(total, min(2 * total, PADDED_TOGETHER))
    group: list[int] = []
    sequences = 0
    for row in sorted(range(len(states)), key=lambda row: states[row].length):
        own = _sequences(states[row])
        if group and states[row].length * (sequences + own) > most:
            yield group
            group, sequences = [], 0
        group.append(row)
        sequences += own
    yield group


def _sequences(state: DenoisingState) -> int:
    return 2 if state.config.guidance_scale > 0 else 1


def _padded_logits(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[list[int]]
) -> list[Tensor]:
    """Whole sequences in one right-padded pass."""
    masked = [row for row, state in enumerate(states) if _sequences(state) == 2]
    rows = [*range(len(states)), *masked]
    width = max(map(len, candidates))
    positions = torch.tensor(
        [
            [states[row].prompt_length + place for place in candidates[row]]
            + [0] * (width - len(candidates[row]))
            for row in rows
        ]
    )
    lengths = [states[row].length for row in rows]
    padded = torch.tensor(lengths) if min(lengths) < max(lengths) else None
    embeds = _padded_sequences(mdlm, states, masked)
    logits = mdlm.logits(embeds, positions.to(embeds.device), padded)
    result = [logits[row, : len(places)] for row, places in enumerate(candidates)]
    for number, row in enumerate(masked):
        unconditional = logits[len(states) + number, : len(candidates[row])]
        result[row] = guided(result[row], unconditional, states[row].config.guidance_scale)
    return result


def _padded_sequences(
    mdlm: Mdlm, states: Sequence[DenoisingState], masked: Sequence[int]
) -> Tensor:
    """[B, N, D]: all states, then those of `masked` with a prompt of masks, right-padded."""
    tails = _tail_embeddings(mdlm, [state.ids + state.suffix_ids for state in states])
    prompts = [state.prompt for state in states]
    for row in masked:
        prompts.append(mdlm.mask_embedding.expand_as(states[row].prompt))
    longest = max(state.length for state in states)
    shortest = min(state.length for state in states)
    padding = tails[0].new_zeros(longest - shortest, tails[0].shape[-1])
    pieces = []
    for row, prompt in zip([*range(len(states)), *masked], prompts, strict=True):
        pieces += [prompt, tails[row], padding[: longest - states[row].length]]
    return torch.cat(pieces).view(len(prompts), longest, -1)


def _tail_embeddings(mdlm: Mdlm, tails: Sequence[list[int]]) -> Sequence[Tensor]:
    """Embeddings of several texts, looked up together."""
    ids = torch.tensor([token for tail in tails for token in tail], device=mdlm.device)
    return torch.split(mdlm.token_embeddings(ids), [len(tail) for tail in tails])


class _Part:
    """What one state runs in a pass over segments: all of its sequence, or some places of it."""

    def __init__(
        self,
        mdlm: Mdlm,
        row: int,
        state: DenoisingState,
        cache: ResponseCache,
        candidates: list[int],
    ) -> None:
        self.row, self.state, self.cache, self.candidates = row, state, cache, candidates
        tail = state.length - state.prompt_length
        self.full = cache.due(state.block)
        if self.full:
            cache.renew(mdlm, state.length, state.block)
            self.places = range(tail)
        else:
            self.places = cache.part(state.block, candidates, tail)

    @property
    def ids(self) -> list[int]:
        tail = self.state.ids + self.state.suffix_ids
        return tail[self.places.start : self.places.stop]

    def segments(self, mdlm: Mdlm, tail: Tensor) -> list[Segment]:
        """The sequence's segment, and with guidance that of the masked prompt behind it."""
        length = self.state.prompt_length
        wanted = [length + place for place in self.candidates]
        if not self.full:
            start = length + self.places.start
            return [Segment(tail, start, wanted, stored) for stored in self.cache.stored]
        prompts = [self.state.prompt, mdlm.mask_embedding.expand_as(self.state.prompt)]
        return [
            Segment(torch.cat([prompt, tail]), 0, wanted, stored)
            for prompt, stored in zip(prompts, self.cache.stored, strict=False)
        ]


def _segment_logits(mdlm: Mdlm, parts: Sequence[_Part]) -> dict[int, Tensor]:
    tails = _tail_embeddings(mdlm, [part.ids for part in parts])
    segments = [part.segments(mdlm, tail) for part, tail in zip(parts, tails, strict=True)]
    found = iter(mdlm.segment_logits([segment for own in segments for segment in own]))
    result = {}
    for part, own in zip(parts, segments, strict=True):
        logits = next(found)
        if len(own) > 1:
            logits = guided(logits, next(found), part.state.config.guidance_scale)
        result[part.row] = logits
    return result


def _feature_logits(
    mdlm: Mdlm, state: DenoisingState, cache: ResponseFeatures, candidates: list[int]
) -> Tensor:
    tail = _tail_embeddings(mdlm, [state.ids + state.suffix_ids])[0]
    prompts = [state.prompt, mdlm.mask_embedding.expand_as(state.prompt)]
    found = [
        mdlm.feature_logits(
            FeaturePass(
                torch.cat([prompt, tail]),
                [state.prompt_length + place for place in candidates],
                stored,
                refresh_prompt=cache.refresh_prompt,
                refresh_response=cache.refresh_response,
                transfer_ratio=state.config.transfer_ratio,
            )
        )
        for prompt, stored in zip(prompts, cache.stored, strict=False)
    ]
    if len(found) > 1:
        return guided(found[0], found[1], state.config.guidance_scale)
    return found[0]
