"""The test-set runner against the product's own way of answering, on a real small model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifier.answer import answer
from purifier.defense.config import MaskingConfig
from purifier.defense.defend import defend
from purifier.errors import InvalidSetting
from purifier.evaluation.runner import NO_CUT, Cut, Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.lab.triggers import BlendedPattern, CornerPatch
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from purifier.seeding import seeded
from tests.support.legible import legible


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="module")
def test_set(data_folder: Path) -> TestSet:
    return read_test_set(data_folder, limit=4)


def one_by_one(
    mdlm: Mdlm, test_set: TestSet, masking: MaskingConfig | None, *, triggered: bool
) -> tuple[str, ...]:
    texts = []
    for number, case in enumerate(test_set.cases):
        picture = test_set.trigger.stamp(case.picture) if triggered else case.picture
        own = masking
        if masking is not None and masking.ranker == "random":
            own = replace(masking, seed=masking.seed + number)
        result = answer(
            mdlm, picture, case.sample.question, generation=test_set.generation, masking=own
        )
        texts.append(result.text)
    return tuple(texts)


def test_undefended_answers_are_the_products(mdlm: Mdlm, test_set: TestSet) -> None:
    answers = Runner(mdlm, test_set, batch_size=3).undefended()
    assert len(set(answers.clean + answers.triggered)) > 3
    assert answers.clean == one_by_one(mdlm, test_set, None, triggered=False)
    assert answers.triggered == one_by_one(mdlm, test_set, None, triggered=True)


def test_group_testing_s_answers_are_the_products(mdlm: Mdlm, test_set: TestSet) -> None:
    masking = MaskingConfig().adjusted(effort="balanced", threshold=0.01, gate=0.0)
    cut = Cut(masking.ratio, masking.threshold)
    swept = Runner(mdlm, test_set, batch_size=5).masked(masking, [cut])[cut]
    assert swept.triggered == one_by_one(mdlm, test_set, masking, triggered=True)


def test_changed_images_are_asked_about_by_the_number_of_their_case(
    mdlm: Mdlm, test_set: TestSet
) -> None:
    seen: list[int] = []

    def emptied(number: int, image: Image.Image) -> Image.Image:
        seen.append(number)
        return Image.new("RGB", image.size, (90, 90, 90))

    runner = Runner(mdlm, test_set, batch_size=3)
    answers = runner.transformed(emptied)
    assert seen == [*range(4), *range(4)]
    assert answers.clean == answers.triggered != runner.undefended().triggered
    assert runner.transformed(lambda number, image: image) == runner.undefended()


@pytest.mark.parametrize("level", ["token", "patch"])
@pytest.mark.parametrize("ranker", ["fisher", "attention", "random"])
def test_defended_answers_are_the_products(
    mdlm: Mdlm, test_set: TestSet, level: str, ranker: str
) -> None:
    masking = MaskingConfig(level=level, ranker=ranker, probes=2)  # type: ignore[arg-type]
    runner = Runner(mdlm, test_set, batch_size=5, positions_together=300)
    swept = runner.masked(masking, [NO_CUT, Cut(0.3), Cut(1.0)])
    assert swept[NO_CUT] == runner.undefended()
    for cut in (Cut(0.3), Cut(1.0)):
        config = replace(masking, ratio=cut.ratio, threshold=cut.threshold)
        assert swept[cut].clean == one_by_one(mdlm, test_set, config, triggered=False)
        assert swept[cut].triggered == one_by_one(mdlm, test_set, config, triggered=True)
    assert swept[Cut(0.3)] != swept[NO_CUT]
    if level == "token":
        assert swept[Cut(1.0)].clean == swept[Cut(1.0)].triggered


def test_thresholds_are_the_products(mdlm: Mdlm, test_set: TestSet) -> None:
    masking = MaskingConfig(level="patch", ranker="occlusion")
    runner = Runner(mdlm, test_set)
    middle = float(median_score(mdlm, test_set, masking))
    cuts = [Cut(0.3), Cut(0.3, middle), Cut(0.3, 1000.0)]
    swept = runner.masked(masking, cuts)
    for cut in cuts:
        config = replace(masking, ratio=cut.ratio, threshold=cut.threshold)
        assert swept[cut].clean == one_by_one(mdlm, test_set, config, triggered=False)
        assert swept[cut].triggered == one_by_one(mdlm, test_set, config, triggered=True)
    assert swept[cuts[2]] == runner.undefended()
    assert len({swept[cut] for cut in cuts}) == 3


def median_score(mdlm: Mdlm, test_set: TestSet, masking: MaskingConfig) -> torch.Tensor:
    """A threshold that some images reach and others do not."""
    requests = [mdlm.prepare(case.messages()) for case in test_set.cases]
    defended = defend(mdlm, requests, test_set.generation, masking)
    return torch.stack([item.saliency.max() for item in defended]).median()


def test_the_pixel_oracle_makes_triggered_and_clean_images_equal(
    mdlm: Mdlm, test_set: TestSet
) -> None:
    flat = tuple(
        replace(case, picture=case.picture.resize((1, 1)).resize((64, 64)))
        for case in test_set.cases
    )
    trigger = CornerPatch(size=12, colour=flat[0].picture.getpixel((0, 0)))  # type: ignore[arg-type]
    invisible = replace(test_set, cases=flat[:1], trigger=trigger)
    runner = Runner(mdlm, invisible)
    answers = runner.oracle("oracle-pixel")
    assert answers == runner.undefended()
    assert answers.clean == answers.triggered


def test_the_token_oracle_masks_what_the_trigger_covers(mdlm: Mdlm, test_set: TestSet) -> None:
    everywhere = replace(test_set, trigger=CornerPatch(size=64))
    runner = Runner(mdlm, everywhere)
    answers = runner.oracle("oracle-token")
    assert answers.clean == answers.triggered
    nowhere = replace(test_set, trigger=CornerPatch(size=0))
    assert Runner(mdlm, nowhere).oracle("oracle-token") == Runner(mdlm, nowhere).undefended()


@pytest.mark.parametrize("name", ["oracle-token", "oracle-pixel"])
def test_oracles_need_a_place(mdlm: Mdlm, test_set: TestSet, name: str) -> None:
    spread = replace(test_set, trigger=BlendedPattern())
    with pytest.raises(InvalidSetting) as caught:
        Runner(mdlm, spread).oracle(name)  # type: ignore[arg-type]
    assert caught.value.param == "ranker"


@pytest.mark.parametrize("ranker", ["fisher", "occlusion"])
def test_batches_do_not_change_answers(mdlm: Mdlm, test_set: TestSet, ranker: str) -> None:
    masking = MaskingConfig(level="patch", ranker=ranker, probes=2)  # type: ignore[arg-type]
    with seeded(0):
        small = Runner(mdlm, test_set, batch_size=1).masked(masking, [Cut(0.2)])
    with seeded(1):
        assert Runner(mdlm, test_set, batch_size=64).masked(masking, [Cut(0.2)]) == small


def test_batch_size_must_be_positive(mdlm: Mdlm, test_set: TestSet) -> None:
    with pytest.raises(InvalidSetting):
        Runner(mdlm, test_set, batch_size=0)
