"""The decoder on stored features (dLLM-Cache, arXiv 2506.06295), one sequence at a time.

Every layer holds keys, values and the outputs of both of its blocks. What is not computed in a
pass adds its stored outputs to the current residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from purifier.mdlm.segments import FeatureCache, FeaturePass


def new_features(model: LlamaModel, prompt: int, length: int) -> FeatureCache:
    """Room for the features of a sequence, its contents undefined."""
    attention: Any = model.layers[0].self_attn
    weight = attention.k_proj.weight
    layers, width = len(model.layers), model.config.hidden_size
    heads = (layers, model.config.num_key_value_heads, length, attention.head_dim)
    return FeatureCache(
        prompt,
        *(weight.new_empty(shape) for shape in (heads, heads, *[(layers, length, width)] * 2)),
    )


def decode_features(model: LlamaModel, run: FeaturePass) -> Tensor:
    """Final hidden states at the wanted positions, [W, D]."""
    hidden = run.embeds
    positions = torch.arange(len(hidden), device=hidden.device)
    rotary = model.rotary_emb(hidden[None], positions[None])
    for number, layer in enumerate(model.layers):
        hidden = _layer(layer, number, hidden, run, rotary)
    wanted = torch.tensor(list(run.wanted), dtype=torch.long, device=hidden.device)
    normed: Tensor = model.norm(hidden[wanted])
    return normed


def _layer(
    layer: Any, number: int, hidden: Tensor, run: FeaturePass, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    cache = run.cache
    rows = _computed_rows(layer, number, hidden, run)
    if len(rows):
        mixed = _attention(layer, number, hidden, rows, cache, rotary)
        cache.attended[number, rows] = layer.self_attn.o_proj(mixed)
    hidden = hidden + cache.attended[number]
    if len(rows):
        cache.fed[number, rows] = layer.mlp(layer.post_attention_layernorm(hidden[rows]))
    return hidden + cache.fed[number]


def _computed_rows(layer: Any, number: int, hidden: Tensor, run: FeaturePass) -> Tensor:
    """Positions that a layer computes in this pass, int64; writes the values of the response.

    The values of all response positions are computed, for they tell which have changed.
    """
    cache, prompt = run.cache, run.cache.prompt
    places = torch.arange(len(hidden), device=hidden.device)
    rows = [places[:prompt]] if run.refresh_prompt else []
    if run.refresh_response:
        return torch.cat([*rows, places[prompt:]])
    count = int((len(hidden) - prompt) * run.transfer_ratio)
    if count:
        attention = layer.self_attn
        response = attention.v_proj(layer.input_layernorm(hidden[prompt:]))
        values = response.view(len(response), -1, attention.head_dim).transpose(0, 1)
        stored = cache.values[number][:, prompt:]
        similarity = functional.cosine_similarity(
            response, stored.transpose(0, 1).reshape(response.shape), dim=-1
        )
        stored.copy_(values)
        rows.append(prompt + cache.choose(number, similarity, count))
    return torch.cat(rows) if rows else places[:0]


def _attention(
    layer: Any,
    number: int,
    hidden: Tensor,
    rows: Tensor,
    cache: FeatureCache,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention of the computed rows to the whole sequence, heads joined, [rows, H * head_dim]."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden[rows])
    split: Callable[[Tensor], Tensor] = lambda linear: (  # noqa: E731
        linear.view(len(rows), -1, attention.head_dim).transpose(0, 1)
    )
    cache.keys[number][:, rows] = split(attention.k_proj(normed))
    cache.values[number][:, rows] = split(attention.v_proj(normed))
    cos, sin = rotary
    stored = cache.keys[number][None]
    _, keys = apply_rotary_pos_emb(stored, stored, cos, sin)
    queries = split(attention.q_proj(normed))[None]
    queries, _ = apply_rotary_pos_emb(queries, queries, cos[:, rows], sin[:, rows])
    mixed = functional.scaled_dot_product_attention(
        queries,
        keys,
        cache.values[number][None],
        scale=attention.scaling,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return mixed[0].transpose(0, 1).reshape(len(rows), -1)
