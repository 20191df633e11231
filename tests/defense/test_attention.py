"""Attention of the scored positions, against the model's own eager attention maps."""

from __future__ import annotations

import torch

from purifier.defense.first_step import Response, first_step_batch
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.llada_v.attention import layer_attention

RESPONSE = Response(scored=3, length=6)


def test_equals_the_eager_maps(mdlm: LladaV, requests: list[Inputs]) -> None:
    prompts = [mdlm.embed(request) for request in requests]
    batch = first_step_batch(mdlm, prompts, RESPONSE)
    found = mdlm.attention(batch.embeds, batch.positions, batch.lengths)
    model = mdlm.modules.language_model
    model.set_attn_implementation("eager")
    try:
        for row, prompt in enumerate(prompts):
            single = first_step_batch(mdlm, [prompt], RESPONSE)
            maps = model(inputs_embeds=single.embeds, output_attentions=True).attentions
            expected = torch.stack(
                [one[0, :, single.positions[0]].mean((0, 1)) for one in maps]
            ).mean(0)
            length = len(expected)
            torch.testing.assert_close(found[row, :length], expected, rtol=1e-4, atol=1e-6)
            assert float(found[row, length:].sum()) == 0
    finally:
        model.set_attn_implementation("sdpa")


def test_rows_sum_to_one(mdlm: LladaV, requests: list[Inputs]) -> None:
    batch = first_step_batch(mdlm, [mdlm.embed(requests[0])], RESPONSE)
    found = mdlm.attention(batch.embeds, batch.positions, batch.lengths)
    torch.testing.assert_close(found.sum(-1), torch.ones(1))
    assert not mdlm.modules.language_model.layers[0].self_attn._forward_pre_hooks


def test_layer_by_layer(mdlm: LladaV, requests: list[Inputs]) -> None:
    batch = first_step_batch(mdlm, [mdlm.embed(requests[0])], RESPONSE)
    model = mdlm.modules.language_model
    found = layer_attention(model, batch.embeds, batch.positions, None)
    assert found.shape == (1, len(model.layers), batch.embeds.shape[1])
    torch.testing.assert_close(found.sum(-1), torch.ones(1, len(model.layers)))
    mean = mdlm.attention(batch.embeds, batch.positions, None)
    torch.testing.assert_close(found.mean(1), mean)
    model.set_attn_implementation("eager")
    try:
        maps = model(inputs_embeds=batch.embeds, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    for layer, expected in enumerate(maps):
        own = expected[0, :, batch.positions[0]].mean((0, 1))
        torch.testing.assert_close(found[0, layer], own, rtol=1e-4, atol=1e-6)
