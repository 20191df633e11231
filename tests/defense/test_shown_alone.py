"""Windows shown alone: what each does for the answer, and which of them share nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from purifier.answer import answer_batch
from purifier.defense.config import Effort, MaskingConfig
from purifier.defense.defend import make_site
from purifier.defense.first_step import Response, first_step_logits
from purifier.defense.shown_alone import apart, gains
from purifier.defense.two_stage import unmasked_steps
from purifier.defense.windows import windows
from purifier.denoise import FAST
from purifier.evaluation.testset import DESCRIBE, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.demo_attacks import DEMO_ATTACKS
from purifier.lab.targets import target_by_name
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from purifier.numeric import wide
from tests.defense.conftest import LEVELS

RESPONSE = Response(scored=3, length=6)


def nothing() -> None:
    """No deadline."""


@pytest.mark.parametrize("level", LEVELS)
def test_a_gain_is_that_of_the_likeliest_token_over_the_masked_image(
    mdlm: LladaV, requests: list[Inputs], level: Any
) -> None:
    site = make_site(mdlm, requests, MaskingConfig(level=level))
    steps = unmasked_steps(site, site.encode(differentiable=False), RESPONSE, nothing)
    for image, owner in enumerate(site.owners):
        shown = site.on(image, windows(site.plane(image))).units
        found = gains(site, image, shown, steps[owner], RESPONSE, nothing)
        assert found.shape == (len(shown),)
        blank = torch.ones_like(shown[0])
        for window, gain in zip(shown, found.tolist(), strict=True):
            prompts = site.without([(image, blank), (image, ~window)])
            before, after = (
                torch.log_softmax(wide(first_step_logits(mdlm, [prompt], RESPONSE)[0]), -1)
                for prompt in prompts
            )
            tokens = steps[owner].logits.argmax(-1)
            more = [
                float(after[place, token] - before[place, token])
                for place, token in enumerate(tokens.tolist())
                if int(after[place].argmax()) == token
            ]
            assert gain == pytest.approx(max([0.0, *more]), abs=1e-4)


def test_the_check_comes_before_every_pass(mdlm: LladaV, requests: list[Inputs]) -> None:
    calls = []
    site = make_site(mdlm, requests, MaskingConfig())
    steps = unmasked_steps(site, site.encode(differentiable=False), RESPONSE, nothing)
    shown = windows(site.plane(0))
    gains(site, 0, shown, steps[site.owners[0]], RESPONSE, lambda: calls.append(1))
    assert len(calls) == -(-(len(shown) + 1) // 32)


def test_windows_apart_share_no_unit_and_the_highest_comes_first() -> None:
    shown = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]]).bool()
    assert apart(shown, torch.tensor([9.0, 12.0, 10.0, 11.0]), 9.5) == [1, 3]
    assert apart(shown, torch.tensor([9.0, 8.0, 10.0, 11.0]), 9.0) == [3, 2]
    assert apart(shown, torch.tensor([9.0, 12.0, 10.0, 11.0]), 13.0) == []


@pytest.mark.slow
def test_four_copies_are_masked_together_by_the_balanced_level(record_property: Any) -> None:
    """Each of the demo's four patches is enough: one window hidden changes nothing."""
    target = target_by_name("insertion")
    mdlm = load_mdlm(checkpoint_path("copies"))
    mdlm.detector = None
    trigger = DEMO_ATTACKS["copies"].deployed
    cases = [case for case in read_test_set(DATA_FOLDER).cases if case.kind == DESCRIBE][:6]
    inputs = [mdlm.prepare(case.messages(trigger)) for case in cases]
    efforts: list[Effort | None] = [None, "fast", "balanced"]
    left = {
        effort: [
            target.hit(answer.text)
            for answer in answer_batch(
                mdlm,
                inputs,
                generation=replace(FAST, gen_length=32),
                masking=MaskingConfig().adjusted(effort=effort) if effort else None,
            )
        ]
        for effort in efforts
    }
    record_property("left", str({effort: sum(hits) for effort, hits in left.items()}))
    assert sum(left[None]) >= 5
    assert sum(left["fast"]) >= 4
    assert sum(left["balanced"]) <= 1
