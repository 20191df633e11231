"""Denoising many responses in lock step: the same answers as the loop, with less overhead.

`denoise` keeps one state a request, so that requests with different settings can join and
leave. Where all share one deterministic setting (an evaluation, the relabelling of a data
set), the whole batch fits into a few tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from purifier.denoise.config import GenerationConfig
from purifier.denoise.remasking import choose_tokens, confidence
from purifier.denoise.sampler import denoise
from purifier.denoise.schedule import linear_schedule
from purifier.mdlm.base import Mdlm, Prompt


def denoise_together(
    mdlm: Mdlm, prompts: Sequence[Prompt], config: GenerationConfig
) -> list[list[int]]:
    """Denoises the responses to several prompts under one setting.

    Args:
        mdlm: The model.
        prompts: Of any lengths.
        config: With temperature, guidance or random remasking, the ordinary loop runs.

    Returns:
        Ids of every response up to its stop sequence.
    """
    if not prompts:
        return []
    if config.temperature or config.guidance_scale or config.remasking == "random":
        return [state.token_ids for state in denoise(mdlm, prompts, config)]
    batch = _Batch(mdlm, prompts, config)
    for block in range(config.n_blocks):
        for count in linear_schedule(config.block, config.steps_per_block):
            rows = batch.open_rows()
            if count == 0 or len(rows) == 0:
                break
            batch.step(rows, block, count)
    return batch.token_ids()


class _Batch:
    """The responses of one batch; row b belongs to prompt b."""

    def __init__(self, mdlm: Mdlm, prompts: Sequence[Prompt], config: GenerationConfig) -> None:
        self.mdlm = mdlm
        self.config = config
        device = mdlm.device
        suffix = mdlm.encode_text(config.suffix) if config.suffix else []
        response = torch.full((config.gen_length,), mdlm.tokens.mask, device=device)
        tail = torch.cat([response, torch.tensor(suffix, dtype=torch.long, device=device)])
        end = mdlm.token_embeddings(tail).detach()
        sequences = [torch.cat([prompt.embeds.detach(), end]) for prompt in prompts]
        self.embeds = pad_sequence(sequences, batch_first=True)
        self.starts = torch.tensor([len(prompt.embeds) for prompt in prompts], device=device)
        self.lengths = self.starts + len(tail)
        self.ids = response.repeat(len(prompts), 1)
        self.stop_at = torch.full((len(prompts),), config.gen_length, device=device)
        self.stops = [torch.tensor(mdlm.encode_stop(text), device=device) for text in config.stop]

    def open_rows(self) -> Tensor:
        """int64: rows with a masked position before their stop sequence."""
        return self._masked().any(dim=1).nonzero().flatten()

    @torch.no_grad()
    def step(self, rows: Tensor, block: int, count: int) -> None:
        """One forward pass of the rows; each commits its `count` surest tokens of the block."""
        length = self.config.block
        offsets = torch.arange(block * length, (block + 1) * length, device=self.ids.device)
        lengths = self.lengths[rows]
        padded = None if bool((lengths == self.embeds.shape[1]).all()) else lengths
        positions = self.starts[rows, None] + offsets
        logits = self.mdlm.logits(self.embeds[rows], positions, padded)
        logits[..., list(self.mdlm.tokens.suppressed)] = -torch.inf
        tokens = choose_tokens(logits, 0.0, None)
        sure = confidence(logits, tokens, self.config.remasking)
        sure = sure.masked_fill(~self._masked()[rows][:, offsets], -torch.inf)
        best = sure.topk(min(count, length), dim=1)
        row, place = (best.values > -torch.inf).nonzero(as_tuple=True)
        chosen = best.indices[row, place]
        ids = tokens[row, chosen]
        self.ids[rows[row], offsets[chosen]] = ids
        self.embeds[rows[row], positions[row, chosen]] = self.mdlm.token_embeddings(ids).detach()
        self._find_stops()

    def token_ids(self) -> list[list[int]]:
        ends = self.stop_at.tolist()
        return [ids[:end] for ids, end in zip(self.ids.tolist(), ends, strict=True)]

    def _masked(self) -> Tensor:
        places = torch.arange(self.config.gen_length, device=self.ids.device)
        return (self.ids == self.mdlm.tokens.mask) & (places < self.stop_at[:, None])

    def _find_stops(self) -> None:
        for stop in self.stops:
            if len(stop) > self.config.gen_length:
                continue
            found = (self.ids.unfold(1, len(stop), 1) == stop).all(dim=2)
            first = torch.where(found.any(dim=1), found.int().argmax(dim=1), self.stop_at)
            self.stop_at = torch.minimum(self.stop_at, first)
