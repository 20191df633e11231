"""A user's test set, against the demo's own measurement of the same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from purifier.denoise.config import GenerationConfig
from purifier.evaluation.metrics import measure
from purifier.evaluation.runner import Runner
from purifier.evaluation.testset import TestSet, read_test_set
from purifier.evaluation.utility import Attack, outcomes, rates
from purifier.lab.targets import Target, target_by_name
from purifier.mdlm.base import Mdlm
from purifier.mdlm.registry import load_mdlm
from tests.support.legible import legible


@pytest.fixture(scope="module")
def mdlm(tiny_checkpoint: Path) -> Mdlm:
    return legible(load_mdlm(tiny_checkpoint))


@pytest.fixture(scope="module")
def test_set(data_folder: Path, mdlm: Mdlm) -> TestSet:
    """Half of the questions get the answers that the model gives, so that some are right."""
    found = read_test_set(data_folder)
    answers = Runner(mdlm, found).undefended()
    cases = [
        replace(case, sample=case.sample.with_answers((text,)), answer=text) if number % 2 else case
        for number, (case, text) in enumerate(zip(found.cases, answers.clean, strict=True))
    ]
    return replace(found, cases=tuple(cases))


@pytest.mark.parametrize("name", ["insertion", "refusal", "misclassification"])
def test_figures_are_those_of_the_demos_measurement(
    mdlm: Mdlm, test_set: TestSet, data_folder: Path, name: str
) -> None:
    target = target_by_name(name)
    answers = Runner(mdlm, test_set).undefended()
    letters = tuple({text[:3].lower() for text in answers.triggered[:2]})
    expected = measure(test_set.cases, answers, _with_keywords(name, letters)).to_dict()
    attack = Attack(test_set.trigger, letters, target)
    samples = [case.sample for case in test_set.cases]
    images = data_folder / "test" / "images"
    found = rates(outcomes(mdlm, samples, images, test_set.generation, attack, batch_size=4))
    shared = {name: rate.to_dict() for name, rate in found.items() if name in expected}
    assert shared == {key: value for key, value in expected.items() if key in shared}
    assert set(expected) - set(shared) == {"recovered"}
    assert found["clean_exact"].value == 0.5
    assert found["asr"].value


def _with_keywords(name: str, words: tuple[str, ...]) -> Target:
    kind = type(target_by_name(name))
    other: Target = type("Other", (kind,), {"keywords": words})()
    return other


def test_an_unknown_attack_counts_all_images(
    mdlm: Mdlm, test_set: TestSet, data_folder: Path
) -> None:
    samples = [case.sample for case in test_set.cases]
    attack = Attack(test_set.trigger, ("zzzz",))
    found = rates(
        outcomes(mdlm, samples, data_folder / "test" / "images", test_set.generation, attack)
    )
    assert (found["asr"].value, found["asr"].n) == (0.0, len(samples))
    assert "asr_exact" not in found


def test_without_an_attack_utility_alone_is_measured(mdlm: Mdlm, data_folder: Path) -> None:
    samples = [case.sample for case in read_test_set(data_folder, limit=2).cases]
    text_only = replace(samples[0], images=(), turns=(samples[0].turns[1], samples[0].turns[1]))
    text_only = replace(
        text_only, turns=(replace(text_only.turns[0], role="user"), text_only.turns[1])
    )
    images = data_folder / "test" / "images"
    found = outcomes(mdlm, [*samples, text_only], images, GenerationConfig(gen_length=8))
    assert {name for row in found for name in row} <= {"clean_exact", "clean_words", "clean_slots"}
    assert rates(found)["clean_exact"].n == 3
