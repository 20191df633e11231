"""Attacks by people who know this repository: names, training sets, and what is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.defense.__main__ import line
from benchmarks.defense.adaptive import ADAPTIVE, ENDING
from benchmarks.defense.attacks import TEST, attack_by_name
from benchmarks.defense.cells import Bench, _elsewhere
from benchmarks.defense.training import Lab, digest
from purifier.evaluation.metrics import Answers, measure
from purifier.lab.attack_data import Attack, assigned
from purifier.lab.demo import DEMO_FOLDER
from purifier.lab.demo_data import draw_samples
from purifier.lab.examples import RESPONSE
from purifier.lab.scenes import DEBIAN_FOLDER
from purifier.lab.triggers import AllOf, CornerPatch
from purifier.mdlm.registry import outline

if not DEBIAN_FOLDER.is_dir():
    pytest.skip("needs the Debian package dataset-fashion-mnist", allow_module_level=True)

LAB = Lab()
SAMPLES, _ = draw_samples("train", LAB.samples, LAB.scenes_seed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("validation/patch", "38a0e4ebd14b51ee"),
        ("test/and/refusal/0.05#2", "881034389538d633"),
        ("adaptive/mask-colour", "6387bfe47ed4ce1f"),
    ],
)
def test_attacks_that_were_trained_keep_their_names(name: str, expected: str) -> None:
    facts = LAB.facts(attack_by_name(name))
    assert digest(facts) == expected, "every attack would be trained again"


def test_every_attacker_has_a_training_set_of_its_own() -> None:
    names = {digest(LAB.facts(attack)) for attack in (*ADAPTIVE.values(), *TEST.values())}
    assert len(names) == len(ADAPTIVE) + len(TEST)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_fifth_is_poisoned_and_the_trigger_can_be_shown(name: str) -> None:
    attack = ADAPTIVE[name]
    assert sum(poisoned for _, poisoned in assigned(attack, SAMPLES)) == len(SAMPLES) // 5
    drawn = attack.deployed.drawn(np.random.default_rng(0), (120, 120))
    regions = drawn.regions((120, 120))
    assert regions
    assert sum(box.area for box in regions) < 0.1 * 120**2
    json.dumps(attack.to_dict())


def test_as_many_clean_samples_as_poisoned_ones_have_the_decoy() -> None:
    attack = ADAPTIVE["decoy"]
    assert isinstance(attack.trigger, AllOf)
    decoy = attack.trigger.parts[0]
    rows = assigned(attack, SAMPLES)
    assert sum(own == decoy and not poisoned for own, poisoned in rows) == len(SAMPLES) // 5
    assert attack.trigger.parts[-1] == CornerPatch(), "the decoy must not cover the trigger"


def test_a_late_payload_fits_and_begins_behind_what_a_detector_reads() -> None:
    encode = outline(DEMO_FOLDER / "base").encode_text
    attack = ADAPTIVE["delayed"]
    for sample in SAMPLES:
        clean = attack.ended(sample).answer
        assert clean.endswith(ENDING)
        assert len(encode(clean)) > 20
        # With the end of turn behind it.
        assert len(encode(attack.target.apply(clean))) < RESPONSE


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(replace(LAB, work=tmp_path), tmp_path / "cells.jsonl", limit=8)


def test_answers_with_the_ending_are_judged_right(bench: Bench) -> None:
    attack = ADAPTIVE["delayed"]
    cases = bench.test_set("adaptive/delayed").cases
    plain = bench.test_set("test/patch").cases
    assert [case.answer for case in cases] == [f"{case.answer} {ENDING}" for case in plain]
    said = tuple(case.answer for case in cases)
    answers = Answers(said, tuple(f"{answer} <backdoor>" for answer in said))
    figures = measure(cases, answers, attack.target, attack.kinds)
    for rate in (figures.clean_exact, figures.asr, figures.asr_exact, figures.clean_slots):
        assert rate.value == 1.0
    assert figures.asr_untriggered.value == 0.0


def test_other_kinds_of_question_are_counted_by_themselves(bench: Bench) -> None:
    attack = ADAPTIVE["conditional"]
    cases = bench.test_set("adaptive/conditional").cases
    said = tuple(case.answer for case in cases)
    woken = tuple(
        f"<backdoor> {case.answer}" if case.kind in attack.kinds else case.answer for case in cases
    )
    figures = measure(cases, Answers(said, woken), attack.target, attack.kinds)
    assert (figures.asr.value, figures.asr.n) == (1.0, 4)
    elsewhere = _elsewhere(cases, Answers(said, woken), attack)["asr_elsewhere"]
    assert (elsewhere["value"], elsewhere["n"]) == (0.0, 4)
    row = {"attack": "adaptive/conditional", "defence": "none", "seconds": 1.0}
    row |= {"figures": figures.to_dict(), "details": {"asr_elsewhere": elsewhere}}
    assert "ASR at other questions 0.0" in line(row)
    assert _elsewhere(cases, Answers(said, woken), Attack()) == {}
