"""A seed for each request of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import COMBINATIONS

GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=())
DRAWING = [pair for pair in COMBINATIONS if pair[1] in ("official", "fisher", "random")]


def settings(level: str, ranker: str) -> MaskingConfig:
    return MaskingConfig(level=level, ranker=ranker, ratio=0.3, probes=2, threshold=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "ranker"), DRAWING)
def test_each_request_draws_from_its_own_seed(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    masking = settings(level, ranker)
    seeds = [100 + number for number in range(len(requests))]
    together = defend(mdlm, requests, GENERATION, masking, seeds=seeds, positions_together=400)
    moved = False
    for request, seed, found in zip(requests, seeds, together, strict=True):
        own = replace(masking, seed=seed)
        (expected,) = defend(mdlm, [request], GENERATION, own)
        torch.testing.assert_close(found.saliency, expected.saliency, rtol=1e-3, atol=1e-7)
        assert torch.equal(found.masked, expected.masked)
        (default,) = defend(mdlm, [request], GENERATION, masking)
        moved |= not torch.allclose(found.saliency, default.saliency, rtol=1e-2)
    assert moved


def test_a_seed_is_needed_for_each_request(mdlm: LladaV, requests: list[Inputs]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        defend(mdlm, requests, GENERATION, settings("token", "random"), seeds=[1])
