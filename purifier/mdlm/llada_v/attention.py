"""Attention maps of a few positions, without holding the whole maps.

The fused attention kernels return no weights. Here the rows of the asked positions alone
are computed beside the normal pass, from the same hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv


@torch.no_grad()
def mean_attention(
    model: LlamaModel, embeds: Tensor, positions: Tensor, mask: Tensor | None
) -> Tensor:
    """`traced_attention` without gradients."""
    return traced_attention(model, embeds, positions, mask)


def traced_attention(
    model: LlamaModel, embeds: Tensor, positions: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of some positions to all, mean over layers, heads and these positions.

    Gradients flow to the weights and to `embeds`.

    Args:
        model: A bidirectional Llama.
        embeds: [B, N, D].
        positions: int64 [B, P], the asking positions.
        mask: bool [B, N], false at padding; None if there is none.

    Returns:
        float32 [B, N]; every row sums to 1.
    """
    total = torch.zeros(embeds.shape[:2], device=embeds.device)
    _for_every_layer(model, embeds, positions, mask, total.add_)
    return total / len(model.layers)


@torch.no_grad()
def layer_attention(
    model: LlamaModel, embeds: Tensor, positions: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of some positions to all, mean over heads and these positions.

    Args as in `mean_attention`.

    Returns:
        float32 [B, layers, N]; every row sums to 1.
    """
    found: list[Tensor] = []
    _for_every_layer(model, embeds, positions, mask, found.append)
    return torch.stack(found, dim=1)


def _for_every_layer(
    model: LlamaModel,
    embeds: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    take: Callable[[Tensor], object],
) -> None:
    """Hands over the attention of every layer, [B, N], first layer first."""

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        take(_layer_attention(layer, hidden, kwargs["position_embeddings"], positions, mask))

    handles = [
        layer.self_attn.register_forward_pre_hook(record, with_kwargs=True)
        for layer in model.layers
    ]
    try:
        model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _layer_attention(
    layer: Any,
    hidden: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    positions: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Attention in one layer, mean over heads and the asking positions, [B, N]."""
    heads = (*hidden.shape[:2], -1, layer.head_dim)
    queries = layer.q_proj(hidden).view(heads).transpose(1, 2)
    keys = layer.k_proj(hidden).view(heads).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
    index = positions[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[-1])
    keys = repeat_kv(keys, layer.num_key_value_groups)
    weights = queries.gather(2, index) @ keys.transpose(2, 3) * layer.scaling
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None, None, :], float("-inf"))
    return torch.softmax(weights.float(), dim=-1).mean((1, 2))
