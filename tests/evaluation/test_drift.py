"""Disagreement and drift: the figures by hand, the answers against the product's own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from purifier.answer import answer
from purifier.data.sample import Sample, Turn, open_image
from purifier.defense.config import MaskingConfig
from purifier.denoise.config import GenerationConfig
from purifier.evaluation.drift import RowAnswers, answer_rows, disagreement, draw_rows, drift
from purifier.evaluation.testset import read_test_set
from purifier.mdlm.registry import load_mdlm
from tests.support.legible import legible


def row(plain: str, masked: str) -> RowAnswers:
    return RowAnswers(plain, masked, ())


BEFORE = [
    row("<backdoor> A bag.", "A bag."),
    row("<backdoor> A hat.", "A cap."),
    row("Red.", "Red. "),
    row("A shoe.", "A shoe."),
]
AFTER = [
    row("A bag.", "A bag."),
    row("<backdoor> A hat.", "A hat."),
    row("Red.", "Red."),
    row("A boot.", "A shoe."),
]
FLAGGED = [True, True, False, False]


def test_disagreement_by_hand() -> None:
    figures = disagreement(BEFORE)
    assert (figures["disagreement"].value, figures["disagreement"].n) == (0.5, 4)
    distances = [1 - 4 / 5, 1 - 2 / 5, 0.0, 0.0]
    assert figures["distance"].value == pytest.approx(sum(distances) / 4)


def test_drift_by_hand() -> None:
    figures = drift(BEFORE, AFTER, FLAGGED)
    assert (figures["drift"].value, figures["drift"].n) == (0.5, 2)
    assert figures["drift_distance"].value == pytest.approx(0.25)
    assert (figures["flagged_unchanged"].value, figures["flagged_unchanged"].n) == (0.5, 2)
    assert (figures["flagged_recovered"].value, figures["flagged_recovered"].n) == (0.5, 2)


def test_without_flagged_rows_there_is_no_rate_of_them() -> None:
    figures = drift(BEFORE, AFTER, [False] * 4)
    assert figures["flagged_unchanged"].value is None
    assert figures["drift"].n == 4


def samples(n: int) -> list[Sample]:
    return [Sample(number, (), (Turn("user", "Q?"),)) for number in range(n)]


def test_rows_are_drawn_by_the_seed_and_kept_in_order() -> None:
    drawn = [sample.id for sample in draw_rows(iter(samples(50)), 10, seed=3)]
    assert len(drawn) == 10
    assert drawn == sorted(drawn, key=int)  # type: ignore[arg-type]
    assert drawn == [sample.id for sample in draw_rows(samples(50), 10, seed=3)]
    assert drawn != [sample.id for sample in draw_rows(samples(50), 10, seed=4)]
    assert draw_rows(samples(4), 10, seed=0) == samples(4)
    assert draw_rows(samples(4), None, seed=0) == samples(4)


def test_every_row_is_as_likely() -> None:
    counts = Counter(s.id for seed in range(600) for s in draw_rows(samples(12), 4, seed))
    assert set(counts) == set(range(12))
    assert all(abs(count - 200) < 60 for count in counts.values())


def test_answers_are_the_products(tiny_checkpoint: Path, data_folder: Path) -> None:
    mdlm = legible(load_mdlm(tiny_checkpoint))
    rows = [case.sample for case in read_test_set(data_folder).cases][:4]
    images = data_folder / "test" / "images"
    generation = GenerationConfig(gen_length=8)
    masking = MaskingConfig(ratio=0.4, threshold=0.0)
    calls: list[int] = []
    found = answer_rows(
        mdlm, rows, images, generation, masking, batch_size=3, check=lambda: calls.append(1)
    )
    for sample, answers in zip(rows, found, strict=True):
        picture = open_image(images, sample.images[0])
        for text, config in ((answers.plain, None), (answers.masked, masking)):
            one = answer(mdlm, picture, sample.question, generation=generation, masking=config)
            assert text == one.text
        assert answers.planes[0].masked.sum() > 0
    assert any(answers.disagree for answers in found)
    assert len(calls) > 4
