"""The end of a sequence run again on stored keys and values, with parts out of sight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from purifier.mdlm.llada_v import LladaV, tails
from purifier.mdlm.llada_v.modules import LladaVModules
from purifier.mdlm.segments import KeyValues, Segment
from purifier.mdlm.tails import TailPass
from purifier.seeding import seeded
from tests.defense.conftest import TOKENS, small_config

LENGTH, ROWS = 30, 7
WANTED = [0, 2, 3]


@pytest.fixture(scope="module")
def mdlm() -> LladaV:
    config = small_config()
    with seeded(3):
        modules = LladaVModules(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for parameter in modules.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    modules.image_newline.zero_()
    return LladaV(config, modules, None, TOKENS)


@pytest.fixture(scope="module")
def embeds() -> Tensor:
    return torch.randn(LENGTH, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def cache(mdlm: LladaV, embeds: Tensor) -> KeyValues:
    cache = mdlm.key_values(LENGTH)
    mdlm.segment_logits([Segment(embeds, 0, [0], cache)])
    return cache


@pytest.fixture
def unseen() -> Tensor:
    hidden = torch.rand(5, LENGTH - ROWS, generator=torch.Generator().manual_seed(5)) < 0.4
    hidden[0] = False
    hidden[4] = True
    return hidden


def by_hand(
    mdlm: LladaV, embeds: Tensor, cache: KeyValues, unseen: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Logits [R, V] of one run, and the attention [heads, R, N] of every layer."""
    model = mdlm.modules.language_model
    start = LENGTH - ROWS
    hidden = embeds[start:][None]
    cos, sin = model.rotary_emb(hidden, torch.arange(start, LENGTH)[None])
    hide = torch.cat([unseen, torch.zeros(ROWS, dtype=torch.bool)])
    maps = []
    for number, layer in enumerate(model.layers):
        block: Any = layer.self_attn
        normed = layer.input_layernorm(hidden)
        queries, keys, values = (
            linear(normed).view(1, ROWS, -1, block.head_dim).transpose(1, 2)
            for linear in (block.q_proj, block.k_proj, block.v_proj)
        )
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        keys = torch.cat([cache.stored[number, 0, :, :start][None], keys], dim=2)
        values = torch.cat([cache.stored[number, 1, :, :start][None], values], dim=2)
        keys, values = (repeat_kv(x, block.num_key_value_groups) for x in (keys, values))
        scores = (queries @ keys.transpose(2, 3) * block.scaling).masked_fill(hide, -torch.inf)
        weights = scores.softmax(-1)
        maps.append(weights[0])
        hidden = hidden + block.o_proj((weights @ values).transpose(1, 2).reshape(1, ROWS, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return mdlm.modules.lm_head(model.norm(hidden))[0, :, : mdlm.vocab_size], maps


@pytest.mark.parametrize("rows_at_once", [1, 2 * ROWS, 10_000])
def test_every_run_equals_the_one_computed_by_hand(
    mdlm: LladaV,
    embeds: Tensor,
    cache: KeyValues,
    unseen: Tensor,
    rows_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "ROWS_AT_ONCE", rows_at_once)
    found = mdlm.tail_logits(TailPass(embeds[-ROWS:], WANTED, cache, unseen))
    assert found.shape == (5, len(WANTED), mdlm.vocab_size)
    for logits, hidden in zip(found, unseen, strict=True):
        expected, _ = by_hand(mdlm, embeds, cache, hidden)
        torch.testing.assert_close(logits, expected[WANTED], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_with_everything_in_sight_it_is_the_whole_pass(
    mdlm: LladaV, embeds: Tensor, cache: KeyValues
) -> None:
    wanted = [LENGTH - ROWS + place for place in WANTED]
    (expected,) = mdlm.segment_logits([Segment(embeds, 0, wanted, mdlm.key_values(LENGTH))])
    seen = torch.zeros(1, LENGTH - ROWS, dtype=torch.bool)
    (found,) = mdlm.tail_logits(TailPass(embeds[-ROWS:], WANTED, cache, seen))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_out_of_sight_changes_nothing_and_nothing_is_written(
    mdlm: LladaV, embeds: Tensor, cache: KeyValues, unseen: Tensor
) -> None:
    run = TailPass(embeds[-ROWS:], WANTED, cache, unseen[1:2])
    before = cache.stored.clone()
    expected = mdlm.tail_logits(run)
    assert torch.equal(cache.stored, before)
    cache.stored[..., : LENGTH - ROWS, :][:, :, :, unseen[1]] += 3.0
    torch.testing.assert_close(mdlm.tail_logits(run), expected, rtol=1e-5, atol=1e-5)
    cache.stored[..., : LENGTH - ROWS, :][:, :, :, ~unseen[1]] += 3.0
    assert not torch.allclose(mdlm.tail_logits(run), expected, atol=1e-2)


@pytest.mark.parametrize("attention_rows", [1, 64])
def test_peak_attention_is_the_largest_of_all_maps(
    mdlm: LladaV,
    embeds: Tensor,
    cache: KeyValues,
    attention_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tails, "ATTENTION_ROWS", attention_rows)
    seen = torch.zeros(1, LENGTH - ROWS, dtype=torch.bool)
    found = mdlm.tail_attention(TailPass(embeds[-ROWS:], WANTED, cache, seen))
    _, maps = by_hand(mdlm, embeds, cache, seen[0])
    expected = torch.stack(maps)[:, :, WANTED, : LENGTH - ROWS].amax((0, 1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
