"""One denoising step for any set of requests, so that they can join and leave between steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import torch
from torch import Tensor

from purifier.denoise.config import Remasking
from purifier.denoise.passes import candidate_logits
from purifier.denoise.remasking import choose_tokens, confidence
from purifier.denoise.state import DenoisingState
from purifier.errors import PurifierError
from purifier.mdlm.base import Mdlm
from purifier.numeric import wide

Prediction = tuple[list[int], list[float]]


@torch.no_grad()
def denoising_step(mdlm: Mdlm, states: Sequence[DenoisingState]) -> None:
    """Moves every state on by one step, together.

    Args:
        mdlm: The model.
        states: Unfinished states of this model; lengths and settings may differ.

    Raises:
        PurifierError: If the model predicts something that is not a number; then no state
            has moved.
    """
    candidates = [state.candidates() for state in states]
    logits = candidate_logits(mdlm, states, candidates)
    ids = list(mdlm.tokens.suppressed)
    suppressed = torch.tensor(ids, dtype=torch.long, device=logits[0].device)
    for rows in logits:
        rows.index_fill_(1, suppressed, -torch.inf)
    predictions = _predictions(states, candidates, logits)
    if any(isnan(value) for _, confidences in predictions for value in confidences):
        raise PurifierError(
            "The model predicts values that are not numbers; load it with dtype float32."
        )
    for state, (tokens, confidences) in zip(states, predictions, strict=True):
        committed = state.commit(tokens, confidences)
        if state.cache is not None:
            state.cache.step(committed)


def _predictions(
    states: Sequence[DenoisingState], candidates: Sequence[list[int]], logits: Sequence[Tensor]
) -> list[Prediction]:
    """Of every state the tokens its candidates would take, and how sure the model is of them.

    Args:
        states: The states.
        candidates: Their candidates.
        logits: For every state float32 [P, V].
    """
    groups = _rows_by_settings(states)
    parts = []
    for (remasking, temperature), rows in groups.items():
        part = torch.cat([logits[row] for row in rows])
        uniform = None
        if temperature > 0:
            uniform = torch.cat([_uniform(states[row], candidates[row], part) for row in rows])
        tokens = choose_tokens(part, temperature, uniform)
        if remasking == "random":
            # Their confidence is drawn below; the logit tells whether it is a number.
            sure = wide(part.gather(-1, tokens.to(part.device)[:, None])[:, 0])
        else:
            sure = confidence(part, tokens, remasking)
        parts.append(torch.stack([tokens.to(sure), sure]))
    tokens_found, sure_found = torch.cat(parts, dim=1).tolist()
    predictions: list[Prediction] = [([], [])] * len(states)
    offset = 0
    for row in (row for rows in groups.values() for row in rows):
        here = slice(offset, offset + len(candidates[row]))
        offset = here.stop
        confidences = sure_found[here]
        state = states[row]
        if state.config.remasking == "random" and not any(map(isnan, confidences)):
            confidences = state.noise.confidence(_positions(state, candidates[row])).tolist()
        predictions[row] = ([int(token) for token in tokens_found[here]], confidences)
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


def _uniform(state: DenoisingState, candidates: Sequence[int], logits: Tensor) -> Tensor:
    """Uniform draws float64 [P, V] of one state."""
    return state.noise.gumbel_uniform(_positions(state, candidates), logits.shape[-1])


def _positions(state: DenoisingState, candidates: Sequence[int]) -> Tensor:
    """Candidates as positions of the whole sequence, int64 [P]."""
    return torch.tensor(candidates, dtype=torch.long) + state.prompt_length
