"""The decoder over the last positions of sequences whose keys and values are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from purifier.mdlm.segments import KeyValues
from purifier.mdlm.tails import TailPass

ROWS_AT_ONCE = 1024
"""Positions of one pass. Every run of a tail sees its own positions only, so the attention mask
has as many columns for them as rows: it grows with their square."""

ATTENTION_ROWS = 64
"""Positions whose attention weights are held at once."""

Observer = Callable[[int, Any, Tensor], None]
"""Takes a layer's number, the layer and its rotated queries [1, heads, T, head_dim]."""


@torch.no_grad()
def decode_tail(model: LlamaModel, run: TailPass) -> Tensor:
    """Final hidden states at the wanted positions, [W, wanted, D]."""
    together = max(1, ROWS_AT_ONCE // max(len(run.embeds), 1))
    parts = run.unseen.split(together)  # type: ignore[no-untyped-call]
    return torch.cat([_decode(model, run, unseen) for unseen in parts])


@torch.no_grad()
def peak_attention(model: LlamaModel, run: TailPass) -> Tensor:
    """Largest attention that the wanted positions pay to each earlier one.

    The maximum is over layers, heads and wanted positions: a backdoor may need only one head
    at one position, which a mean over all of them hides.

    Args:
        model: A bidirectional Llama.
        run: With a single run.

    Returns:
        float32 [N - R].
    """
    peak = torch.zeros(run.start, device=run.embeds.device)
    wanted = torch.tensor(list(run.wanted), device=run.embeds.device)

    def observe(number: int, layer: Any, queries: Tensor) -> None:
        keys = repeat_kv(
            run.cache.stored[number, 0][None], layer.self_attn.num_key_value_groups
        ).transpose(2, 3)
        for rows in wanted.split(ATTENTION_ROWS):  # type: ignore[no-untyped-call]
            weights = torch.softmax(
                (queries[:, :, rows] @ keys * layer.self_attn.scaling).float(), dim=-1
            )
            torch.maximum(peak, weights[..., : run.start].amax((0, 1, 2)), out=peak)

    _decode(model, run, run.unseen, observe)
    return peak


def _decode(
    model: LlamaModel, run: TailPass, unseen: Tensor, observe: Observer | None = None
) -> Tensor:
    """Some of the runs, [W, wanted, D]."""
    runs, rows = len(unseen), len(run.embeds)
    hidden = run.embeds.repeat(runs, 1)
    places = torch.arange(run.start, run.cache.length, device=hidden.device).repeat(runs)
    rotary = model.rotary_emb(hidden[None], places[None])
    seen = _seen(unseen, rows)
    chosen = torch.tensor(list(run.wanted), device=hidden.device)
    chosen = (torch.arange(runs, device=hidden.device)[:, None] * rows + chosen).flatten()
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers):
        mixed = _attention(layer, number, hidden, run.cache, run.start, rotary, seen, observe)
        if number == last:
            mixed, hidden = mixed[chosen], hidden[chosen]
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    normed: Tensor = model.norm(hidden)
    return normed.view(runs, len(run.wanted), -1)


def _seen(unseen: Tensor, rows: int) -> Tensor:
    """Which keys (earlier positions, then the rows of all runs) each row sees, [T, N - R + T]."""
    before = (~unseen).repeat_interleave(rows, dim=0)
    own = torch.arange(len(before), device=unseen.device) // rows
    return torch.cat([before, own[:, None] == own[None]], dim=1)


def _attention(
    layer: Any,
    number: int,
    hidden: Tensor,
    cache: KeyValues,
    start: int,
    rotary: tuple[Tensor, Tensor],
    seen: Tensor,
    observe: Observer | None,
) -> Tensor:
    """Attention of all rows, heads joined, [T, heads * head_dim]."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    queries, keys, values = (
        linear(normed).view(1, len(hidden), -1, attention.head_dim).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
    if observe is not None:
        observe(number, layer, queries)
    stored = cache.stored[number, :, :, :start]
    mixed = functional.scaled_dot_product_attention(
        queries,
        torch.cat([stored[0][None], keys], dim=2),
        torch.cat([stored[1][None], values], dim=2),
        attn_mask=seen,
        scale=attention.scaling,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return mixed[0].transpose(0, 1).reshape(len(hidden), -1)
