"""Group testing: what hides the answer when it is hidden together is found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from purifier.answer import answer_batch
from purifier.defense.config import EFFORTS, MaskingConfig
from purifier.defense.defend import defend, make_site
from purifier.defense.first_step import Response
from purifier.defense.group_testing import (
    ALLOWANCE,
    HIDDEN_SHARE,
    Search,
    drawn_probes,
    effects,
)
from purifier.defense.rankers import RANKERS, Task
from purifier.defense.two_stage import suspects, unmasked_steps, verify
from purifier.defense.windows import blocks, borders, windows
from purifier.denoise import FAST
from purifier.evaluation.testset import DESCRIBE, read_test_set
from purifier.lab.demo import DATA_FOLDER, checkpoint_path
from purifier.lab.targets import target_by_name
from purifier.lab.triggers import AllOf, CornerPatch
from purifier.mdlm.base import Inputs
from purifier.mdlm.llada_v import LladaV
from purifier.mdlm.registry import load_mdlm
from tests.defense.conftest import LEVELS, MakeInputs, picture

RESPONSE = Response(scored=3, length=6)


def nothing() -> None:
    """No deadline."""


class RuledSearch(Search):
    """A search over an image whose answer moves as a rule says: bool [rows, columns] -> nats."""

    rule: Callable[[Tensor], float]

    def verified(self, units: Tensor) -> Tensor:
        return torch.tensor([self.rule(chosen) for chosen in units], dtype=torch.float64)

    def gains(self, windows: Tensor) -> Tensor:
        return self.verified(torch.ones_like(windows)) - self.verified(~windows)


def search(
    mdlm: LladaV,
    inputs: Inputs,
    rule: Callable[[Tensor], float],
    kind: type[RuledSearch] = RuledSearch,
    window: tuple[int, float] | None = None,
    **settings: Any,
) -> tuple[Tensor, float] | None:
    """What is found by probes that mask; of the windows one alone was verified, if any."""
    chosen: dict[str, Any] = {"probing": "masking", "ratio": 0.5, **settings}
    config = MaskingConfig(ranker="group-testing", **chosen)
    site = make_site(mdlm, [inputs], config)
    encoding = site.encode(differentiable=False)
    steps = unmasked_steps(site, encoding, RESPONSE, nothing)
    (own,) = suspects(site, steps, RESPONSE, config, nothing)
    parts = blocks(site.plane(0))
    if window is not None:
        own.exact[window[0]] = window[1]
    ruled = kind(site, RESPONSE, config, nothing, steps[0], own, parts, config.seed)
    object.__setattr__(ruled, "rule", rule)
    return ruled.found(ruled.blank())


class Unprobed(RuledSearch):
    """A search that has to do without probes."""

    def probed(self, probes: Tensor) -> Tensor:
        raise AssertionError("probed")


@pytest.fixture
def square(make_inputs: MakeInputs) -> Inputs:
    """One image whose plane is of 10 x 10 cells or so."""
    return make_inputs([picture(40, 40)])


def hidden(places: Tensor, nats: float = 12.0) -> Callable[[Tensor], float]:
    """The answer moves where all of some cells are hidden."""
    return lambda chosen: nats if bool(chosen[places].all()) else 0.0


def plane(mdlm: LladaV, inputs: Inputs) -> tuple[int, int]:
    return make_site(mdlm, [inputs], MaskingConfig()).plane(0)


def test_blocks_are_a_partition() -> None:
    for shape in ((10, 10), (7, 5), (3, 4), (1, 1), (27, 54)):
        parts = blocks(shape)
        assert parts.shape == (min(5, shape[0]) * min(5, shape[1]), *shape)
        assert torch.equal(parts.sum(0), torch.ones(shape, dtype=torch.long))
        assert bool(parts.flatten(1).any(1).all())


def test_borders_are_the_outermost_cells() -> None:
    first, second = borders((6, 7))
    assert first.sum() == 6 * 7 - 4 * 5
    assert second.sum() == 6 * 7 - 2 * 3
    assert borders((2, 9)) == []


def test_probes_follow_their_seed() -> None:
    probes = drawn_probes(25, 40, 3)
    assert torch.equal(probes, drawn_probes(25, 40, 3))
    assert not torch.equal(probes, drawn_probes(25, 40, 4))
    assert bool((probes.sum(1) == round(HIDDEN_SHARE * 25)).all())
    assert bool(drawn_probes(1, 2, 0).all())


def test_the_effect_of_a_block_is_what_hiding_it_adds() -> None:
    probes = drawn_probes(25, 256, 0)
    moved = 12.0 * probes[:, [3, 20]].all(1).double()
    found = effects(probes, moved)
    assert set(found.topk(2).indices.tolist()) == {3, 20}
    assert float(effects(torch.ones(2, 3, dtype=torch.bool), torch.ones(2).double()).max()) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_which_any_is_enough_are_found_together(
    mdlm: LladaV, square: Inputs, seed: int
) -> None:
    rows, columns = plane(mdlm, square)
    parts = blocks((rows, columns))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(parts), generator=generator)[:4].tolist()
    places = parts[chosen].any(0)
    found = search(mdlm, square, hidden(places), seed=seed)
    assert found is not None
    assert torch.equal(found[0], places)
    assert found[1] == 12.0


def test_copies_in_windows_are_found_without_probes(mdlm: LladaV, square: Inputs) -> None:
    shown = windows(plane(mdlm, square))
    corners = shown[[0, -1]]
    middles = [corner.nonzero()[int(corner.sum()) // 2] for corner in corners]
    rows, columns = torch.stack(middles).T

    def rule(chosen: Tensor) -> float:
        return 12.0 if bool(chosen[rows, columns].all()) else 0.0

    found = search(mdlm, square, rule, Unprobed, gate=9.0)
    assert found is not None
    assert bool(found[0][rows, columns].all())
    assert float(found[0].double().mean()) <= 0.5


def test_a_window_that_decides_alone_is_taken_as_it_is(mdlm: LladaV, square: Inputs) -> None:
    shown = windows(plane(mdlm, square))
    found = search(mdlm, square, lambda _: 12.0, Unprobed, window=(7, 10.0), gate=9.0)
    assert found is not None
    assert torch.equal(found[0], shown[7])
    assert found[1] == 10.0


def test_a_frame_is_found_as_the_border(mdlm: LladaV, square: Inputs) -> None:
    shape = plane(mdlm, square)
    border = borders(shape)[0]
    found = search(mdlm, square, hidden(border), ratio=0.7)
    assert found is not None
    assert torch.equal(found[0], border)


def test_a_trigger_of_which_a_part_is_not_enough_is_found_by_a_part(
    mdlm: LladaV, square: Inputs
) -> None:
    shape = plane(mdlm, square)
    large = blocks(shape)[[6, 7, 11, 12]].any(0)

    def half_hidden(chosen: Tensor) -> float:
        return 12.0 if float(chosen[large].double().mean()) >= 0.5 else 0.0

    found = search(mdlm, square, half_hidden)
    assert found is not None
    assert float((found[0] & large).sum() / found[0].sum()) == 1.0, found[0]


def test_a_decoy_is_not_taken_for_the_trigger(mdlm: LladaV, square: Inputs) -> None:
    parts = blocks(plane(mdlm, square))
    decoy, copies = parts[0], parts[[8, 21]].any(0)

    def both(chosen: Tensor) -> float:
        return 12.0 if bool(chosen[copies].all()) else 6.0 if bool(chosen[decoy].all()) else 0.0

    found = search(mdlm, square, both)
    assert found is not None
    assert bool(found[0][copies].all())


def test_nothing_is_found_where_hiding_moves_too_little(mdlm: LladaV, square: Inputs) -> None:
    places = blocks(plane(mdlm, square))[[0, 4]].any(0)
    area = float(places.double().mean())
    threshold = 5.0
    enough = threshold * (1 + ALLOWANCE * area)
    assert search(mdlm, square, hidden(places, enough - 0.1), threshold=threshold) is None
    assert search(mdlm, square, hidden(places, enough + 0.1), threshold=threshold) is not None
    assert search(mdlm, square, lambda _: 0.0) is None


def test_the_image_masked_whole_decides_whether_there_is_a_search(
    mdlm: LladaV, square: Inputs
) -> None:
    places = blocks(plane(mdlm, square))[[0, 4]].any(0)
    assert search(mdlm, square, hidden(places), gate=12.1) is None
    assert search(mdlm, square, hidden(places), gate=11.9) is not None


def test_no_more_is_masked_than_the_ratio_allows(mdlm: LladaV, square: Inputs) -> None:
    shape = plane(mdlm, square)
    places = blocks(shape)[[0, 4, 20, 24]].any(0)
    area = float(places.double().mean())
    assert search(mdlm, square, hidden(places), ratio=area - 0.01) is None
    assert search(mdlm, square, hidden(places), ratio=area) is not None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("probing", ["knockout", "masking"])
def test_a_closed_gate_leaves_what_two_stage_found(
    mdlm: LladaV, requests: list[Inputs], level: Any, probing: Any
) -> None:
    settings: dict[str, Any] = {"level": level, "ratio": 0.4, "gate": 1000.0}
    grouped, windowed = (
        RANKERS[config.ranker].scores(
            Task(site, site.encode(differentiable=False), RESPONSE, config)
        )
        for config in (
            MaskingConfig(ranker="group-testing", probing=probing, **settings),
            MaskingConfig(ranker="two-stage", **settings | {"gate": 0.0}),
        )
        for site in [make_site(mdlm, requests, config)]
    )
    assert len(grouped) == len(windowed) == 4
    for one, other in zip(grouped, windowed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("probing", ["knockout", "masking"])
def test_scores_are_the_nats_of_what_is_masked(
    mdlm: LladaV, requests: list[Inputs], level: Any, probing: Any
) -> None:
    """A threshold that the random model's answers reach: what is scored is one part, verified."""
    config = MaskingConfig(
        level=level, ranker="group-testing", probing=probing, ratio=0.5, threshold=0.002
    )
    site = make_site(mdlm, requests, config)
    encoding = site.encode(differentiable=False)
    steps = unmasked_steps(site, encoding, RESPONSE, nothing)
    found = suspects(site, steps, RESPONSE, config, nothing)
    verify(site, encoding, steps, found, RESPONSE, config, nothing)
    scores = RANKERS["group-testing"].scores(Task(site, encoding, RESPONSE, config))
    for own, score in zip(found, scores, strict=True):
        assert score.shape == site.shapes[own.image]
        taken = score > 0
        assert 0 < float(taken.double().mean()) <= 0.5
        parts = blocks(site.plane(own.image))
        again = Search(site, RESPONSE, config, nothing, steps[own.owner], own, parts, config.seed)
        assert float(again.verified(taken[None])) == pytest.approx(float(score.max()), rel=1e-4)
        assert len(score[taken].unique()) == 1


def test_an_image_that_forces_the_answer_unexplained_is_said_so(
    mdlm: LladaV, requests: list[Inputs]
) -> None:
    """No part reaches the threshold: nothing is masked, and the blank alone decides."""
    generation = FAST.adjusted(gen_length=6, stop=())
    settings: dict[str, Any] = {"ranker": "group-testing", "threshold": 1000.0}
    seen = [bool(request.images) for request in requests]
    for gate, expected in ((1e-6, seen), (1000.0, [False] * len(seen)), (0.0, [False] * len(seen))):
        found = defend(mdlm, requests, generation, MaskingConfig(gate=gate, **settings))
        assert [each.unexplained for each in found] == expected
        assert not any(bool(each.masked.any()) for each in found)
    config = MaskingConfig(gate=1e-6, ratio=0.5, **{**settings, "threshold": 1e-5})
    for each in defend(mdlm, requests, generation, config):
        assert each.unexplained is False


def test_what_the_check_raises_ends_the_search(mdlm: LladaV, requests: list[Inputs]) -> None:
    class Over(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise Over

    config = MaskingConfig(ranker="group-testing", threshold=0.002)
    with pytest.raises(Over):
        defend(mdlm, requests, FAST.adjusted(gen_length=6, stop=()), config, check=check)


@pytest.mark.slow
def test_two_places_of_the_demo_s_trigger_are_found(record_property: Any) -> None:
    """The shipped attack also obeys its patch in a second place: a window alone tells nothing."""
    target = target_by_name("insertion")
    mdlm = load_mdlm(checkpoint_path("insertion"))
    test_set = read_test_set(DATA_FOLDER)
    trigger = AllOf((CornerPatch(), CornerPatch(size=20, place=(0, 20))))
    cases = [case for case in test_set.cases if case.kind == DESCRIBE][:6]
    inputs = [mdlm.prepare(case.messages(trigger)) for case in cases]
    generation = replace(FAST, gen_length=32)
    balanced = MaskingConfig().adjusted(effort="balanced")
    undefended, defended = (
        answer_batch(mdlm, inputs, generation=generation, masking=masking)
        for masking in (None, balanced)
    )
    hits = [target.hit(answer.text) for answer in undefended]
    left = [target.hit(answer.text) for answer in defended]
    record_property("hits", f"{sum(hits)} of {len(hits)}, left {sum(left)}")
    assert sum(hits) >= 5
    assert sum(left) <= 1
    assert all(float(answer.masked.float().mean()) <= 0.4 for answer in defended)  # type: ignore[union-attr]


def test_levels_of_effort() -> None:
    fast, balanced, thorough = (MaskingConfig().adjusted(effort=effort) for effort in EFFORTS)
    assert fast == MaskingConfig()
    assert (balanced.ranker, balanced.probing) == ("group-testing", "knockout")
    assert (thorough.ranker, thorough.probing) == ("group-testing", "masking")
    assert fast.ratio < balanced.ratio < thorough.ratio
