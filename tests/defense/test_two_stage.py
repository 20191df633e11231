"""Two-stage occlusion: the same verdicts as the exhaustive one, from few passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from purifier.defense import two_stage
from purifier.defense.config import N_WINDOWS, Level, MaskingConfig
from purifier.defense.defend import Defended, defend, make_site
from purifier.defense.first_step import FirstStep, Response, first_steps, response_tail
from purifier.defense.leave_one_out import occlusion
from purifier.defense.rankers import RANKERS, Task
from purifier.defense.windows import Regions, windows
from purifier.denoise.config import GenerationConfig
from purifier.denoise.state import DenoisingState
from purifier.denoise.step import denoising_step
from purifier.evaluation.testset import read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.mdlm.base import Inputs, Mdlm, Prompt
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from purifier.mdlm.tails import TailPass
from tests.defense.conftest import LEVELS

GENERATION = GenerationConfig(gen_length=6, block_length=3, stop=(), cache="prefix")
RESPONSE = Response(scored=3, length=6)
ALL: dict[str, Any] = {"shortlist": N_WINDOWS, "verify": N_WINDOWS, "gate": 0.0}


def masking(level: str = "patch", **settings: Any) -> MaskingConfig:
    """With a threshold that this random model reaches, just above what is not verified."""
    chosen: dict[str, Any] = {"ratio": 0.4, "threshold": 0.0011, **settings}
    return MaskingConfig(level=level, ranker="two-stage", **chosen)  # type: ignore[arg-type]


def scores(mdlm: LladaV, requests: Sequence[Inputs], config: MaskingConfig) -> list[torch.Tensor]:
    site = make_site(mdlm, requests, config)
    encoding = site.encode(differentiable=False)
    return RANKERS[config.ranker].scores(Task(site, encoding, RESPONSE, config))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of every whole pass that the rankers run."""
    counts: list[int] = []

    def counted(mdlm: Mdlm, prompts: Sequence[Prompt], response: Response) -> list[FirstStep]:
        counts.append(len(prompts))
        return first_steps(mdlm, prompts, response)

    monkeypatch.setattr(two_stage, "first_steps", counted)
    return counts


def test_every_window_verified_is_occlusion(mdlm: LladaV, requests: list[Inputs]) -> None:
    config = masking(ratio=1.0, **ALL)
    site = make_site(mdlm, requests, config)
    expected = occlusion(site, site.encode(differentiable=False), RESPONSE)
    found = scores(mdlm, requests, config)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert float(other.max()) > two_stage.UNVERIFIED
        # What scores less than an unverified window may is not told from it.
        other = other.clamp_min(two_stage.UNVERIFIED)
        torch.testing.assert_close(one.clamp_min(two_stage.UNVERIFIED), other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_the_model_hangs_on_every_image(mdlm: LladaV, requests: list[Inputs], level: str) -> None:
    """What the tests below count on, with room for the rounding of another machine."""
    for own in scores(mdlm, requests, masking(level, ratio=1.0, verify=1)):
        assert float(own.max()) > 2 * two_stage.UNVERIFIED


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("verify", [1, 2, 3])
def test_only_as_many_windows_as_asked_for_are_verified(
    mdlm: LladaV, requests: list[Inputs], passes: list[int], level: str, verify: int
) -> None:
    found = scores(mdlm, requests, masking(level, ratio=1.0, verify=verify))
    # Three requests have images, four of them in all; they share both passes.
    assert passes == [3, 4 * verify]
    for own, shape in zip(found, make_site(mdlm, requests, masking(level)).shapes, strict=True):
        assert own.shape == shape
        assert 1 <= len(own[own >= two_stage.UNVERIFIED].unique()) <= verify
        assert float(own[own < two_stage.UNVERIFIED].min()) >= 0.0


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_tried_below_the_gate(
    mdlm: LladaV, requests: list[Inputs], passes: list[int], level: str
) -> None:
    found = defend(mdlm, requests, GENERATION, masking(level, gate=1000.0))
    assert passes == [3]
    for item, request in zip(found, requests, strict=True):
        assert not item.masked.any()
        torch.testing.assert_close(item.prompt.embeds, mdlm.embed(request).embeds)


@pytest.mark.parametrize("level", LEVELS)
def test_knockout_is_the_divergence_without_sight_of_a_window(
    mdlm: LladaV, requests: list[Inputs], level: Level
) -> None:
    config = MaskingConfig(level=level, ranker="knockout", shortlist=3)
    request = requests[1]
    found = scores(mdlm, [request], config)
    site = make_site(mdlm, [request], config)
    (step,) = first_steps(mdlm, site.encode(differentiable=False).prompts, RESPONSE)
    tail = response_tail(mdlm, RESPONSE)
    wanted = range(RESPONSE.scored)
    nothing = torch.zeros(1, len(step.prompt.embeds), dtype=torch.bool)
    peak = mdlm.tail_attention(TailPass(tail, wanted, step.cache, nothing)).double()
    before = step.logits.double().log_softmax(-1)
    for image, span in enumerate(step.prompt.spans):
        regions = site.on(image, windows(site.plane(image)))
        visual = peak[span.start : span.start + span.length]
        attention = [float(visual[own].mean()) for own in regions.tokens]
        listed = sorted(range(len(attention)), key=lambda w: -attention[w])[:3]
        expected = torch.zeros(site.shapes[image], dtype=torch.float64)
        for window in listed:
            unseen = nothing.clone()
            unseen[0, span.start : span.start + span.length] = regions.tokens[window]
            (logits,) = mdlm.tail_logits(TailPass(tail, wanted, step.cache, unseen))
            after = logits.double().log_softmax(-1)
            score = (before.exp() * (before - after)).sum(-1).max()
            units = regions.units[window]
            expected[units] = torch.maximum(expected[units], score)
        listed_units = regions.units[listed].any(0)
        torch.testing.assert_close(
            found[image][listed_units], expected[listed_units], rtol=1e-3, atol=1e-5
        )
        assert float(found[image][~listed_units].max()) < two_stage.UNVERIFIED


OUTCOMES = {"masked": {}, "nothing reaches the threshold": {"threshold": 900.0},
            "nothing passes the gate": {"gate": 1000.0}}  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_pass_that_decided_is_the_first_step(
    mdlm: LladaV, requests: list[Inputs], level: str, outcome: str
) -> None:
    config = masking(level, ratio=1.0, **OUTCOMES[outcome])
    # The second request has two images: a pass with one of them masked is not its first step.
    for number, found in enumerate(defend(mdlm, requests, GENERATION, config)):
        assert bool(found.masked.any()) == (outcome == "masked" and number != 2)
        if number == 2 or (outcome == "masked" and number == 1):
            assert found.first is None
            continue
        (expected,) = first_steps(mdlm, [found.prompt], RESPONSE)
        assert found.first is not None
        torch.testing.assert_close(found.first.logits, expected.logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            found.first.stored.stored, expected.cache.stored, rtol=1e-3, atol=1e-4
        )
        assert answer_ids(mdlm, found, taken=True) == answer_ids(mdlm, found, taken=False)


def answer_ids(mdlm: LladaV, found: Defended, *, taken: bool) -> list[int]:
    first = found.first if taken else None
    state = DenoisingState(mdlm, found.prompt, GENERATION, first=first)
    while not state.done:
        denoising_step(mdlm, [state])
    return state.ids


@pytest.mark.parametrize("change", [{"cache": "none"}, {"cache": "dllm"}, {"guidance_scale": 1.0}])
def test_nothing_is_handed_over_to_settings_that_cannot_take_it(
    mdlm: LladaV, requests: list[Inputs], change: dict[str, Any]
) -> None:
    generation = replace(GENERATION, **change)
    assert defend(mdlm, requests[:1], generation, masking())[0].first is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ranker", ["two-stage", "knockout"])
def test_check_is_called_between_the_passes(
    mdlm: LladaV, requests: list[Inputs], level: str, ranker: str
) -> None:
    config = replace(masking(level), ranker=ranker)  # type: ignore[arg-type]
    calls: list[int] = []
    defend(mdlm, requests, GENERATION, config, check=lambda: calls.append(0))
    # Before the parts, the first pass, the looks at three requests with four images, and the trial.
    assert len(calls) >= 2 + 1 + 3 + 4 + (ranker == "two-stage")
    for last in range(len(calls)):
        with pytest.raises(InterruptedError):
            defend(mdlm, requests, GENERATION, config, check=stop_after(last))


def stop_after(calls: int) -> Callable[[], None]:
    left = [calls]

    def check() -> None:
        if not left[0]:
            raise InterruptedError
        left[0] -= 1

    return check


def test_trials_take_bounded_passes(
    mdlm: LladaV, requests: list[Inputs], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = masking(ratio=1.0, verify=3)
    expected = scores(mdlm, requests, config)
    passes.clear()
    longest = max(request.length for request in requests) + RESPONSE.length
    monkeypatch.setattr(two_stage, "STORED_AT_ONCE", 2 * longest)
    found = scores(mdlm, requests, config)
    assert sum(passes) == 3 + 12
    assert max(passes[1:]) <= 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_what_is_verified_is_what_the_ratio_lets_be_masked(
    mdlm: LladaV, requests: list[Inputs]
) -> None:
    (found,) = defend(mdlm, requests[:1], GENERATION, masking(ratio=0.03))
    assert 1 <= int(found.masked.sum()) <= int(0.03 * found.n_units)
    assert found.first is not None


@pytest.mark.parametrize("target", ["insertion", "misclassification"])
def test_finds_the_trigger_of_the_demo_and_leaves_clean_images_alone(target: str) -> None:
    demo = load_mdlm(checkpoint_path(target))
    test = read_test_set(DATA_FOLDER, limit=3)
    case = next(case for case in test.cases if case.kind == "describe")
    for level in LEVELS:
        config = MaskingConfig(level=level, ranker="two-stage")  # type: ignore[arg-type]
        clean, triggered = defend(
            demo,
            [demo.prepare(case.messages(trigger)) for trigger in (None, test.trigger)],
            test.generation,
            config,
        )
        assert not clean.masked.any()
        assert bool(triggered.planes[0].masked[0, 0])
        assert not triggered.planes[0].masked[5:].any()


def suspected(attention: Sequence[float], moved: Sequence[float]) -> two_stage.Suspects:
    """Windows of an image by what the first two looks say of them."""
    units = torch.eye(len(moved), dtype=torch.bool)
    nothing = torch.full((len(moved),), torch.nan, dtype=torch.float64)
    drawn, knocked = (torch.tensor(values, dtype=torch.float64) for values in (attention, moved))
    return two_stage.Suspects(0, 0, Regions(units, units), drawn, drawn, knocked, nothing)


def test_a_window_that_draws_little_attention_is_tried_where_knockout_names_it() -> None:
    own = suspected([0.5, 0.3, 0.2, 0.1], [0.0, 0.2, two_stage.ALERT, torch.nan])
    assert own.tried(gate=0.0, most=1) == [2]
    assert own.tried(gate=0.0, most=4) == [2, 0, 1, 3]


def test_below_a_nat_attention_names_the_window() -> None:
    own = suspected([0.5, 0.3, 0.2, 0.1], [0.0, 0.2, 0.99 * two_stage.ALERT, torch.nan])
    assert own.tried(gate=0.0, most=1) == [0]
    assert own.tried(gate=0.0, most=4) == [0, 2, 1, 3]


def test_without_knockout_attention_alone_gives_the_order() -> None:
    own = suspected([0.3, 0.5, 0.2], [torch.nan] * 3)
    assert own.tried(gate=0.0, most=2) == [1, 0]


def test_a_closed_gate_tries_no_window() -> None:
    assert suspected([0.5, 0.3], [1.0, 2.0]).tried(gate=2.5, most=1) == []


def test_attention_names_a_second_window_where_that_of_knockout_did_not_decide() -> None:
    own = suspected([0.5, 0.3, 0.2], [0.0, 0.2, two_stage.ALERT])
    own.exact[2] = 3.9
    assert own.retried([2], threshold=4.0) == [0]
    assert own.retried([2, 0], threshold=4.0) == []
    assert own.retried([2], threshold=3.9) == []
    assert own.retried([], threshold=4.0) == []
    calm = suspected([0.5, 0.3, 0.2], [0.0, 0.2, 0.99 * two_stage.ALERT])
    assert calm.retried([2], threshold=4.0) == []


def test_second_trials_share_one_pass(
    mdlm: LladaV, requests: list[Inputs], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no least effect of knockout, and a threshold that its windows do not reach."""
    monkeypatch.setattr(two_stage, "ALERT", 0.0)
    scores(mdlm, requests, masking(ratio=1.0, shortlist=N_WINDOWS, threshold=900.0))
    first, trial, again = passes
    assert (first, trial) == (3, 4)
    assert 1 <= again <= 4


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_the_second_window_is_masked_where_the_first_did_not_decide(
    threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Knockout is made to name the corner across from the trigger."""
    demo = load_mdlm(checkpoint_path("insertion"))
    test = read_test_set(DATA_FOLDER, limit=3)
    case = next(case for case in test.cases if case.kind == "describe")
    config = MaskingConfig(threshold=threshold)  # type: ignore[arg-type]
    monkeypatch.setattr(two_stage, "ALERT", 0.0)
    monkeypatch.setattr(two_stage.Suspects, "tried", lambda self, gate, most: [N_WINDOWS - 1])
    asked = [demo.prepare(case.messages(test.trigger))]
    generation = replace(test.generation, cache="prefix")
    (found,) = defend(demo, asked, generation, config)
    assert bool(found.planes[0].masked[0, 0])
    # Without a threshold, the rest of the ratio is masked too.
    assert bool(found.planes[0].masked[5:, 5:].any()) is (threshold is not None)
    if threshold is None:
        assert found.first is not None
        response = Response.of(demo, generation, config.scored_length)
        (expected,) = first_steps(demo, [found.prompt], response)
        torch.testing.assert_close(found.first.logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_what_knockout_names_is_verified(
    mdlm: LladaV, requests: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the rule, attention names another window of some image."""
    config = masking(ratio=1.0, **{**ALL, "verify": 1})
    named = scores(mdlm, requests, replace(config, ranker="knockout"))

    def verified(alert: float) -> list[bool]:
        monkeypatch.setattr(two_stage, "ALERT", alert)
        found = scores(mdlm, requests, config)
        pairs = zip(found, named, strict=True)
        return [bool((own[by == by.max()] >= two_stage.UNVERIFIED).all()) for own, by in pairs]

    assert all(verified(0.0))
    assert not all(verified(1000.0))
