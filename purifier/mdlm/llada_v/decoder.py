"""The decoder over segments of several sequences at once, without padding.

Linear layers see the positions of all segments as one list; attention goes sequence by sequence,
each over its own stored keys and values. So a batch costs what its positions cost, however
different the lengths are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from purifier.mdlm.segments import KeyValues, Segment


def new_key_values(model: LlamaModel, length: int) -> KeyValues:
    """Room for the keys and values of a sequence, its contents undefined."""
    config = model.config
    attention: Any = model.layers[0].self_attn
    weight = attention.k_proj.weight
    heads = config.num_key_value_heads
    shape = (len(model.layers), 2, heads, length, attention.head_dim)
    return KeyValues(torch.empty(shape, dtype=weight.dtype, device=weight.device))


def decode_segments(model: LlamaModel, segments: Sequence[Segment]) -> Tensor:
    """Final hidden states at the wanted positions of all segments.

    Args:
        model: A bidirectional Llama.
        segments: Of any sequences, each with a cache of its own.

    Returns:
        [W, D], segment by segment in the order of `wanted`.
    """
    hidden = torch.cat([segment.embeds for segment in segments])
    places = torch.cat([torch.arange(segment.start, segment.stop) for segment in segments])
    rotary = model.rotary_emb(hidden[None], places[None].to(hidden.device))
    wanted = _wanted_rows(segments, hidden.device)
    last = len(model.layers) - 1
    for number, layer in enumerate(model.layers):
        chosen = wanted if number == last else None
        hidden = _layer(layer, number, hidden, segments, rotary, chosen)
    normed: Tensor = model.norm(hidden)
    return normed


def _wanted_rows(segments: Sequence[Segment], device: torch.device) -> Tensor:
    rows: list[int] = []
    offset = 0
    for segment in segments:
        rows += [offset + place - segment.start for place in segment.wanted]
        offset += len(segment.embeds)
    return torch.tensor(rows, dtype=torch.long, device=device)


def _layer(
    layer: Any,
    number: int,
    hidden: Tensor,
    segments: Sequence[Segment],
    rotary: tuple[Tensor, Tensor],
    chosen: Tensor | None,
) -> Tensor:
    """One layer; with `chosen` (the last layer) only these rows are finished."""
    normed = layer.input_layernorm(hidden)
    mixed = _attention(layer.self_attn, number, normed, segments, rotary)
    if chosen is not None:
        mixed, hidden = mixed[chosen], hidden[chosen]
    hidden = hidden + layer.self_attn.o_proj(mixed)
    finished: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return finished


def _attention(
    attention: Any,
    number: int,
    normed: Tensor,
    segments: Sequence[Segment],
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention of all rows to their own sequences, heads joined, [T, H * head_dim]."""
    rows = len(normed)
    queries, keys, values = (
        linear(normed).view(1, rows, -1, attention.head_dim).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
    grouped = queries.shape[1] != keys.shape[1]
    parts = []
    offset = 0
    for segment in segments:
        here = slice(offset, offset + len(segment.embeds))
        offset = here.stop
        stored = segment.cache.stored[number]
        stored[0, :, segment.start : segment.stop] = keys[0, :, here]
        stored[1, :, segment.start : segment.stop] = values[0, :, here]
        part = functional.scaled_dot_product_attention(
            queries[:, :, here],
            stored[0][None],
            stored[1][None],
            scale=attention.scaling,
            enable_gqa=grouped,
        )
        parts.append(part[0].transpose(0, 1).reshape(here.stop - here.start, -1))
    return torch.cat(parts)


def head_logits(hidden: Tensor, head: nn.Linear, vocab_size: int) -> Tensor:
    """Logits float32 [..., vocab_size]."""
    return functional.linear(hidden, head.weight[:vocab_size]).float()
