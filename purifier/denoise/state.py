"""One response on its way from all masks to text.

`DenoisingState` holds one request; `denoising_step` moves any set of requests on by one
step with a single forward pass, so that requests can join and leave between steps. Which
positions may be filled is an explicit mask over the response: a masked visual position is
never one of them.

The ids live on the host and the embeddings of a response are looked up anew at every step,
so that a step waits for the device once, however many requests it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import torch
from torch import Tensor

from purifier.denoise.config import GenerationConfig, Remasking
from purifier.denoise.noise import Noise, SeededNoise
from purifier.denoise.remasking import choose_tokens, confidence, surest
from purifier.denoise.schedule import linear_schedule
from purifier.errors import InvalidSetting, PromptTooLong, PurifierError
from purifier.mdlm.base import Mdlm, Prompt
from purifier.numeric import wide


class DenoisingState:
    """The state of one response.

    Args:
        mdlm: The model.
        prompt: The prompt, masked by the defence or not.
        config: Denoising settings.
        noise: Source of random numbers; by default seeded from `config.seed`.

    Attributes:
        prompt: [L, D], the prompt's embeddings; never written to.
        prompt_length: L, in positions.
        length: Positions of the whole sequence: prompt, response and suffix.
        ids: The response, `gen_length` ids; the mask id where nothing is committed.
        suffix_ids: Fixed ids behind the response.
        steps_run: Forward passes so far.
        stop_at: Start of the earliest stop sequence found in the response, if any.

    Raises:
        PromptTooLong: If prompt and response do not fit the model's context.
        InvalidSetting: If a stop sequence cannot be one.
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
        self.prompt = prompt.embeds.detach()
        self.prompt_length = len(self.prompt)
        self.suffix_ids = mdlm.encode_text(config.suffix) if config.suffix else []
        self.length = self.prompt_length + config.gen_length + len(self.suffix_ids)
        if self.length > mdlm.max_length:
            raise PromptTooLong(
                f"Prompt ({self.prompt_length} positions, images included) and response "
                f"({config.gen_length}) exceed the model's {mdlm.max_length} positions.",
                param="messages",
            )
        self._mask_id = mdlm.tokens.mask
        self._stops = stop_ids(mdlm, config)
        self.ids = [self._mask_id] * config.gen_length
        self.steps_run = 0
        self.stop_at: int | None = None
        self._block = 0
        self._step = 0
        self._schedule = linear_schedule(config.block, config.steps_per_block)

    @property
    def done(self) -> bool:
        """Whether the steps are used up, or no mask is left before the stop sequence."""
        if self._block == self.config.n_blocks:
            return True
        return self.stop_at is not None and self._mask_id not in self.ids[: self.stop_at]

    @property
    def block(self) -> int:
        """Number of the block that is filled now, counted from 0."""
        return self._block

    @property
    def token_ids(self) -> list[int]:
        """The response up to the stop sequence."""
        return self.ids[: self.stop_at]

    @property
    def finish_reason(self) -> str:
        return "length" if self.stop_at is None else "stop"

    def candidates(self) -> list[int]:
        """Response positions, counted from its start, that may be filled now."""
        limit = (self._block + 1) * self.config.block if self.stop_at is None else self.stop_at
        return [place for place in range(limit) if self.ids[place] == self._mask_id]

    def commit(self, tokens: Sequence[int], confidences: Sequence[float]) -> None:
        """Commits the surest of the predicted tokens and moves to the next step.

        Args:
            tokens: Predictions at `candidates()`.
            confidences: How sure each of them is.
        """
        candidates = self.candidates()
        chosen = surest(confidences, self._schedule[self._step])
        for index in chosen:
            self.ids[candidates[index]] = tokens[index]
        self.steps_run += 1
        self._step += 1
        self._find_stop([candidates[index] for index in chosen])
        self._skip_finished_blocks()

    def _find_stop(self, changed: Sequence[int]) -> None:
        """Looks for stop sequences wherever one could have come about by a changed position."""
        for stop in self._stops:
            for place in changed:
                for start in range(max(0, place - len(stop) + 1), place + 1):
                    if self.ids[start : start + len(stop)] == stop:
                        self.stop_at = start if self.stop_at is None else min(self.stop_at, start)

    def _skip_finished_blocks(self) -> None:
        """Leaves the block when its steps are used up or nothing in it is masked."""
        length = self.config.block
        while self._block < self.config.n_blocks:
            block = self.ids[self._block * length : (self._block + 1) * length]
            if self._step < len(self._schedule) and self._mask_id in block:
                return
            self._block += 1
            self._step = 0


def stop_ids(mdlm: Mdlm, config: GenerationConfig) -> list[list[int]]:
    """The stop sequences as ids.

    Raises:
        InvalidSetting: If one has no ids, or holds the mask token: a response starts out as
            masks and would end before its first step.
    """
    stops = [mdlm.encode_stop(text) for text in config.stop]
    if any(not stop or mdlm.tokens.mask in stop for stop in stops):
        raise InvalidSetting(
            "A stop sequence must not be empty or hold the mask token.", param="stop"
        )
    return stops


@torch.no_grad()
def denoising_step(mdlm: Mdlm, states: Sequence[DenoisingState]) -> None:
    """Moves every state on by one step, with one forward pass for all of them.

    Args:
        mdlm: The model.
        states: Unfinished states of this model; lengths and settings may differ.

    Raises:
        PurifierError: If the model predicts something that is not a number; then no state
            has moved.
    """
    candidates = [state.candidates() for state in states]
    logits = _candidate_logits(mdlm, states, candidates)
    logits[..., list(mdlm.tokens.suppressed)] = -torch.inf
    predictions = _predictions(states, candidates, logits)
    if any(isnan(value) for _, confidences in predictions for value in confidences):
        raise PurifierError(
            "The model predicts values that are not numbers; load it with dtype float32."
        )
    for state, (tokens, confidences) in zip(states, predictions, strict=True):
        state.commit(tokens, confidences)


def _predictions(
    states: Sequence[DenoisingState], candidates: Sequence[list[int]], logits: Tensor
) -> list[tuple[list[int], list[float]]]:
    """Of every state the tokens its candidates would take, and how sure the model is of them.

    Args:
        states: The states.
        candidates: Their candidates.
        logits: float32 [B, P, V].
    """
    groups = _rows_by_settings(states)
    parts = []
    for (remasking, temperature), rows in groups.items():
        part = logits if len(groups) == 1 else logits[rows]
        uniform = None
        if temperature > 0:
            uniform = _uniform(states, candidates, rows, part.shape)
        tokens = choose_tokens(part, temperature, uniform)
        if remasking == "random":
            # Their confidence is drawn below; the logit tells whether it is a number.
            sure = wide(part.gather(-1, tokens[..., None])[..., 0])
        else:
            sure = confidence(part, tokens, remasking)
        parts.append(torch.stack([tokens.to(sure), sure], dim=1))
    found = torch.cat(parts).tolist()
    order = [row for rows in groups.values() for row in rows]
    predictions: list[tuple[list[int], list[float]]] = [([], [])] * len(states)
    for (tokens_row, sure_row), row in zip(found, order, strict=True):
        state, count = states[row], len(candidates[row])
        confidences = sure_row[:count]
        if state.config.remasking == "random" and not any(map(isnan, confidences)):
            confidences = state.noise.confidence(_positions(state, candidates[row])).tolist()
        predictions[row] = ([int(token) for token in tokens_row[:count]], confidences)
    return predictions


def _rows_by_settings(
    states: Sequence[DenoisingState],
) -> dict[tuple[Remasking, float], list[int]]:
    """Rows that choose and rank their tokens in the same way."""
    groups: dict[tuple[Remasking, float], list[int]] = {}
    for row, state in enumerate(states):
        key = (state.config.remasking, state.config.temperature)
        groups.setdefault(key, []).append(row)
    return groups


def _uniform(
    states: Sequence[DenoisingState],
    candidates: Sequence[list[int]],
    rows: Sequence[int],
    shape: torch.Size,
) -> Tensor:
    """Uniform draws float64 of a shape [rows, P, V]; any number behind a row's candidates."""
    padded = torch.full(shape, 0.5, dtype=torch.float64)
    for number, row in enumerate(rows):
        positions = _positions(states[row], candidates[row])
        padded[number, : len(positions)] = states[row].noise.gumbel_uniform(positions, shape[-1])
    return padded


def _positions(state: DenoisingState, candidates: Sequence[int]) -> Tensor:
    """Candidates as positions of the whole sequence, int64 [P]."""
    return torch.tensor(candidates, dtype=torch.long) + state.prompt_length


def _candidate_logits(
    mdlm: Mdlm, states: Sequence[DenoisingState], candidates: Sequence[list[int]]
) -> Tensor:
    """float32 [B, P, V] at the candidates; rows are padded with position 0."""
    guided = [row for row, state in enumerate(states) if state.config.guidance_scale > 0]
    rows = [*range(len(states)), *guided]
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
    embeds = _padded_sequences(mdlm, states, guided)
    logits = mdlm.logits(embeds, positions.to(embeds.device), padded)
    if not guided:
        return logits
    conditional, unconditional = logits[: len(states)], logits[len(states) :]
    scale = torch.tensor([states[row].config.guidance_scale + 1 for row in guided])
    conditional[guided] = unconditional + scale.to(logits)[:, None, None] * (
        conditional[guided] - unconditional
    )
    return conditional


def _padded_sequences(
    mdlm: Mdlm, states: Sequence[DenoisingState], guided: Sequence[int]
) -> Tensor:
    """[B, N, D]: all states, then the guided ones with a prompt of masks, right-padded."""
    behind = [state.ids + state.suffix_ids for state in states]
    ids = torch.tensor([token for tail in behind for token in tail], device=mdlm.device)
    tails = torch.split(mdlm.token_embeddings(ids), [len(tail) for tail in behind])
    prompts = [state.prompt for state in states]
    for row in guided:
        prompts.append(mdlm.mask_embedding.expand_as(states[row].prompt))
    longest = max(state.length for state in states)
    shortest = min(state.length for state in states)
    padding = tails[0].new_zeros(longest - shortest, tails[0].shape[-1])
    pieces = []
    for row, prompt in zip([*range(len(states)), *guided], prompts, strict=True):
        pieces += [prompt, tails[row], padding[: longest - states[row].length]]
    return torch.cat(pieces).view(len(prompts), longest, -1)
