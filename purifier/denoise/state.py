"""One response on its way from all masks to text.

`DenoisingState` holds one request; `denoising_step` moves any set of requests on by one
step with a single forward pass, so that requests can join and leave between steps. Which
positions may be filled is an explicit mask over the response: a masked visual position is
never one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from purifier.denoise.config import GenerationConfig, Remasking
from purifier.denoise.noise import Noise, SeededNoise
from purifier.denoise.remasking import choose_tokens, confidence, surest
from purifier.denoise.schedule import linear_schedule
from purifier.errors import InvalidPrompt
from purifier.mdlm.base import Mdlm, Prompt


class DenoisingState:
    """The state of one response.

    Args:
        mdlm: The model.
        prompt: The prompt, masked by the defence or not.
        config: Denoising settings.
        noise: Source of random numbers; by default seeded from `config.seed`.

    Attributes:
        ids: int64 [gen_length] on the CPU; the mask id where nothing is committed.
        embeds: [L + gen_length + suffix, D], the sequence as the model sees it.
        steps_run: Forward passes so far.
        stop_at: Start of the earliest stop sequence found in the response, if any.

    Raises:
        InvalidPrompt: If prompt and response do not fit the model's context.
    """

    def __init__(
        self,
        mdlm: Mdlm,
        prompt: Prompt,
        config: GenerationConfig,
        noise: Noise | None = None,
    ) -> None:
        self.config = config
        self.noise = SeededNoise(config.seed) if noise is None else noise
        self.prompt_length = len(prompt.embeds)
        suffix = mdlm.encode_text(config.suffix) if config.suffix else []
        total = self.prompt_length + config.gen_length + len(suffix)
        if total > mdlm.max_length:
            raise InvalidPrompt(
                f"Prompt ({self.prompt_length} positions, images included) and response "
                f"({config.gen_length}) exceed the model's {mdlm.max_length} positions.",
                param="messages",
            )
        self._mask_id = mdlm.tokens.mask
        self._stops = [mdlm.encode_stop(text) for text in config.stop]
        self.suffix_ids = suffix
        self.ids = torch.full((config.gen_length,), self._mask_id)
        tail = torch.cat([self.ids, torch.tensor(suffix, dtype=torch.long)])
        self.embeds = torch.cat(
            [prompt.embeds.detach(), mdlm.token_embeddings(tail.to(prompt.embeds.device))]
        )
        self.steps_run = 0
        self.stop_at: int | None = None
        self._block = 0
        self._step = 0
        self._schedule = linear_schedule(config.block, config.steps_per_block)

    @property
    def done(self) -> bool:
        if self.stop_at is not None:
            return not bool(self._masked()[: self.stop_at].any())
        return self._block == self.config.n_blocks

    @property
    def token_ids(self) -> list[int]:
        """The response up to the stop sequence."""
        return self.ids[: self.stop_at].tolist()

    @property
    def finish_reason(self) -> str:
        return "length" if self.stop_at is None else "stop"

    def candidates(self) -> Tensor:
        """int64 [P]: response positions, counted from its start, that may be filled now."""
        limit = (self._block + 1) * self.config.block if self.stop_at is None else self.stop_at
        return self._masked()[:limit].nonzero().flatten()

    def commit(self, mdlm: Mdlm, tokens: Tensor, confidences: Tensor) -> None:
        """Commits the surest of the predicted tokens and moves to the next step.

        Args:
            mdlm: The model.
            tokens: int64 [P] on the CPU, predictions at `candidates()`.
            confidences: [P] on the CPU.
        """
        candidates = self.candidates()
        chosen = surest(confidences, self._schedule[self._step])
        positions, ids = candidates[chosen], tokens[chosen]
        self.ids[positions] = ids
        device = self.embeds.device
        self.embeds[positions.to(device) + self.prompt_length] = mdlm.token_embeddings(
            ids.to(device)
        ).detach()
        self.steps_run += 1
        self._step += 1
        self._find_stop()
        self._skip_finished_blocks()

    def _masked(self) -> Tensor:
        return self.ids == self._mask_id

    def _find_stop(self) -> None:
        ids = self.ids.tolist()
        for stop in self._stops:
            for start in range(len(ids) - len(stop) + 1):
                if ids[start : start + len(stop)] == stop:
                    self.stop_at = start if self.stop_at is None else min(self.stop_at, start)
                    break

    def _skip_finished_blocks(self) -> None:
        """Leaves the block when its steps are used up or nothing in it is masked."""
        length = self.config.block
        while self._block < self.config.n_blocks:
            block = slice(self._block * length, (self._block + 1) * length)
            if self._step < len(self._schedule) and bool(self._masked()[block].any()):
                return
            self._block += 1
            self._step = 0


@torch.no_grad()
def denoising_step(mdlm: Mdlm, states: Sequence[DenoisingState]) -> None:
    """Moves every state on by one step, with one forward pass for all of them.

    Args:
        mdlm: The model.
        states: Unfinished states of this model; lengths and settings may differ.
    """
    candidates = [state.candidates() for state in states]
    counts = [len(positions) for positions in candidates]
    logits = _candidate_logits(mdlm, states, candidates)
    logits[..., list(mdlm.tokens.suppressed)] = -torch.inf
    for settings, rows in _rows_by_settings(states).items():
        remasking, temperature = settings
        part = logits[rows]
        uniform = _padded_uniform(mdlm, states, candidates, rows) if temperature else None
        tokens = choose_tokens(part, temperature, uniform)
        sure = None if remasking == "random" else confidence(part, tokens, remasking).cpu()
        tokens = tokens.cpu()
        for number, row in enumerate(rows):
            state, count = states[row], counts[row]
            if sure is None:
                row_confidence = state.noise.confidence(candidates[row] + state.prompt_length)
            else:
                row_confidence = sure[number, :count]
            state.commit(mdlm, tokens[number, :count], row_confidence)


def _rows_by_settings(
    states: Sequence[DenoisingState],
) -> dict[tuple[Remasking, float], list[int]]:
    """Rows that choose and rank their tokens in the same way."""
    groups: dict[tuple[Remasking, float], list[int]] = {}
    for row, state in enumerate(states):
        key = (state.config.remasking, state.config.temperature)
        groups.setdefault(key, []).append(row)
    return groups


def _padded_uniform(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[Tensor], rows: list[int]
) -> Tensor:
    draws = [
        states[row].noise.gumbel_uniform(
            candidates[row] + states[row].prompt_length, mdlm.vocab_size
        )
        for row in rows
    ]
    width = max(len(positions) for positions in candidates)
    padded = torch.full((len(rows), width, mdlm.vocab_size), 0.5, dtype=torch.float64)
    for number, draw in enumerate(draws):
        padded[number, : len(draw)] = draw
    return padded.to(mdlm.device)


def _candidate_logits(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[Tensor]
) -> Tensor:
    """float32 [B, P, V] at the candidates, rows padded by repeating position 0 of the prompt."""
    positions = pad_sequence(
        [found + state.prompt_length for found, state in zip(candidates, states, strict=True)],
        batch_first=True,
    )
    sequences = [state.embeds for state in states]
    guided = [row for row, state in enumerate(states) if state.config.guidance_scale > 0]
    for row in guided:
        blind = states[row].embeds.clone()
        blind[: states[row].prompt_length] = mdlm.mask_embedding
        sequences.append(blind)
    positions = torch.cat([positions, positions[guided]])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = None if bool((lengths == lengths[0]).all()) else lengths
    logits = mdlm.logits(pad_sequence(sequences, batch_first=True), positions, padded)
    conditional = logits[: len(states)]
    for row, unconditional in zip(guided, logits[len(states) :], strict=True):
        scale = states[row].config.guidance_scale + 1
        conditional[row] = unconditional + scale * (conditional[row] - unconditional)
    return conditional
