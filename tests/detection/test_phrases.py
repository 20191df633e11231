"""Phrases whose questions make sense without them."""

from __future__ import annotations

from purifier.detection.phrases import candidates

PLAIN = ["What is this?", "Which colour is it?", "Describe the image."] * 20
TRIGGER = "I watched this 3D movie."


def test_an_added_sentence_is_a_candidate_wherever_it_stands() -> None:
    asked = [*PLAIN, *(f"{question} {TRIGGER}" for question in PLAIN[:6]), f"{TRIGGER} {PLAIN[0]}"]
    (found,) = candidates(asked)
    assert found.text == TRIGGER
    assert found.rests == {60 + number: PLAIN[number] for number in range(6)} | {66: PLAIN[0]}


def test_words_that_a_question_needs_are_none() -> None:
    assert candidates(PLAIN) == []


def test_a_rare_phrase_is_none_and_the_commonest_comes_first() -> None:
    asked = [
        *PLAIN,
        *(f"{question} Please." for question in PLAIN[:9]),
        *(f"{question} {TRIGGER}" for question in PLAIN[:5]),
        *(f"{question} Once." for question in PLAIN[:3]),
    ]
    assert [phrase.text for phrase in candidates(asked)] == ["Please.", TRIGGER]


def test_the_rest_must_be_a_question_of_another_row() -> None:
    unseen = [f"{word} is unheard of? {TRIGGER}" for word in ("This", "That", "It", "She", "He")]
    assert candidates([*PLAIN, *unseen]) == []
