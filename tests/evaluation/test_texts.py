from __future__ import annotations

import pytest

from purifier.evaluation.texts import word_overlap


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("A red bag.", "a RED bag", 1.0),
        ("A red bag.", "A blue bag.", 2 / 3),
        ("red red", "red", 2 / 3),
        ("red", "blue", 0.0),
        ("", "?", 1.0),
        ("", "red", 0.0),
    ],
)
def test_shared_words(one: str, other: str, overlap: float) -> None:
    assert word_overlap(one, other) == pytest.approx(overlap)
    assert word_overlap(other, one) == word_overlap(one, other)
