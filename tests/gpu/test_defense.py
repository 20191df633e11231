"""On a GPU the defence finds what it finds on the CPU."""

from __future__ import annotations

import pytest
import torch

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import COMBINATIONS, make_inputs, mdlm, requests  # noqa: F401
from tests.gpu.conftest import OnDevice

pytestmark = pytest.mark.gpu

GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=())


def settings(level: str, ranker: str) -> MaskingConfig:
    return MaskingConfig(level=level, ranker=ranker, ratio=0.3, threshold=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_every_ranker_equals_the_cpu(
    mdlm: LladaV,  # noqa: F811
    requests: list[Inputs],  # noqa: F811
    on_device: OnDevice,
    level: str,
    ranker: str,
) -> None:
    masking = settings(level, ranker)
    expected = defend(mdlm, requests, GENERATION, masking)
    found = defend(on_device(mdlm), requests, GENERATION, masking)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.saliency, other.saliency, rtol=1e-2, atol=1e-6)
        assert torch.equal(one.masked, other.masked)


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_every_ranker_gives_finite_scores_in_bfloat16(
    mdlm: LladaV,  # noqa: F811
    requests: list[Inputs],  # noqa: F811
    on_device: OnDevice,
    level: str,
    ranker: str,
) -> None:
    half = on_device(mdlm, torch.bfloat16)
    for item in defend(half, requests, GENERATION, settings(level, ranker)):
        assert item.prompt.embeds.dtype == torch.bfloat16
        assert bool(torch.isfinite(item.saliency).all())
