"""On a GPU the defence finds what it finds on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.denoise.config import GenerationConfig
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from tests.defense.conftest import COMBINATIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=())


def settings(level: str, ranker: str) -> MaskingConfig:
    return MaskingConfig(level=level, ranker=ranker, ratio=0.3, threshold=0.0)  # type: ignore[arg-type]


@pytest.fixture
def full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_equals_the_cpu(mdlm: LladaV, requests: list[Inputs], level: str, ranker: str) -> None:
    masking = settings(level, ranker)
    expected = defend(mdlm, requests, GENERATION, masking)
    mdlm.modules.cuda()
    try:
        found = defend(mdlm, requests, GENERATION, masking)
    finally:
        mdlm.modules.cpu()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.saliency, other.saliency, rtol=1e-2, atol=1e-6)
        assert torch.equal(one.masked, other.masked)


@pytest.mark.parametrize(("level", "ranker"), COMBINATIONS)
def test_bfloat16(mdlm: LladaV, requests: list[Inputs], level: str, ranker: str) -> None:
    mdlm.modules.to("cuda", torch.bfloat16)
    try:
        found = defend(mdlm, requests, GENERATION, settings(level, ranker))
    finally:
        mdlm.modules.to("cpu", torch.float32)
    for item in found:
        assert item.prompt.embeds.dtype == torch.bfloat16
        assert bool(torch.isfinite(item.saliency).all())
