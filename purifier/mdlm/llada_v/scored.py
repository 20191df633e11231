"""A forward pass, with gradients, of which a few positions are wanted.

In the last layer these positions alone ask, so queries, the output projection and the
feed-forward block of all others are left out, in the backward pass as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def scored_hidden(
    model: LlamaModel, embeds: Tensor, positions: Tensor, mask: Tensor | None
) -> Tensor:
    """Output of the last layer at some positions, before the final norm.

    Args:
        model: A bidirectional Llama.
        embeds: [B, N, D]; gradients flow to it.
        positions: int64 [B, P].
        mask: bool [B, N], false at padding; None if there is none.

    Returns:
        [B, P, D].
    """
    places = torch.arange(embeds.shape[1], device=embeds.device)[None]
    rotary = model.rotary_emb(embeds, places)
    seen = None if mask is None else mask[:, None, None].expand(-1, 1, embeds.shape[1], -1)
    hidden = embeds
    for layer in model.layers[:-1]:
        hidden = layer(
            hidden,
            attention_mask=seen,
            position_embeddings=rotary,
            use_cache=False,
            is_causal=False,
        )
    return _last_layer(model.layers[-1], hidden, positions, mask, rotary)


def _last_layer(
    layer: Any,
    hidden: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """[B, P, D]."""
    attention = layer.self_attn
    batch, _, width = hidden.shape
    normed = layer.input_layernorm(hidden)
    index = positions[:, :, None].expand(-1, -1, width)
    asking = normed.gather(1, index)
    queries, keys, values = (
        linear(rows).view(batch, rows.shape[1], -1, attention.head_dim).transpose(1, 2)
        for linear, rows in (
            (attention.q_proj, asking),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    cos, sin = rotary
    queries, _ = apply_rotary_pos_emb(queries, queries, cos[0, positions], sin[0, positions])
    _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
    mixed = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None
        if mask is None
        else mask[:, None, None].expand(-1, 1, len(positions[0]), -1),
        scale=attention.scaling,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    mixed = mixed.transpose(1, 2).reshape(batch, positions.shape[1], -1)
    rows = hidden.gather(1, index) + attention.o_proj(mixed)
    finished: Tensor = rows + layer.mlp(layer.post_attention_layernorm(rows))
    return finished
