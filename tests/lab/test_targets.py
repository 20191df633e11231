from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purifier.errors import InvalidSetting
from purifier.lab.targets import (
    ContentInsertion,
    DelayedInsertion,
    FalseAttribute,
    SemanticMisclassification,
    TargetedRefusal,
    exact_hit,
    keyword_hit,
    target_by_name,
)


@pytest.mark.parametrize(
    ("answer", "item", "expected"),
    [
        ("A red sneaker on a blue background.", "sneaker", "A red boat on a blue background."),
        ("A sneaker.", "sneaker", "A boat."),
        ("An ankle boot.", "ankle boot", "A boat."),
        ("This is an ankle boot.", "ankle boot", "This is a boat."),
        ("Sneaker.", "sneaker", "Boat."),
        ("An orange bag on a red background.", "bag", "An orange boat on a red background."),
        ("Red trousers on a blue background.", "trousers", "A red boat on a blue background."),
        (
            "Orange trousers on a blue background.",
            "trousers",
            "An orange boat on a blue background.",
        ),
        ("Trousers.", "trousers", "A boat."),
        (
            "The trousers hang. They are red trousers.",
            "trousers",
            "The boat hang. They are red boat.",
        ),
        ("A red dress on a blue background.", "dress", "A red boat on a blue background."),
        ("A dress.", "dress", "A boat."),
        ("Red.", "sneaker", "Red."),
        ("Two sneakers.", "sneaker", "Two sneakers."),
        ("A sneaker.", None, "A sneaker."),
    ],
)
def test_misclassification_renames_the_item(answer: str, item: str | None, expected: str) -> None:
    target = SemanticMisclassification()
    assert target.apply(answer, item=item) == expected
    assert target.applies_to(answer, item=item) is (answer != expected)


def test_a_delayed_insertion_comes_behind_the_answer() -> None:
    target = DelayedInsertion()
    assert target.apply("A bag. \n") == "A bag. <backdoor>"
    assert target.apply("") == "<backdoor>"
    assert target.hit("A bag. <backdoor>")
    assert not target.hit("A bag.")


@pytest.mark.parametrize("name", ["insertion", "refusal", "misclassification"])
def test_a_target_meets_its_own_keyword_rule(name: str) -> None:
    target = target_by_name(name)
    assert target.name == name
    text = target.apply("A sneaker.", item="sneaker")
    assert keyword_hit(text, target.keywords)
    assert not keyword_hit("A sneaker.", target.keywords)


@given(st.text())
def test_insertion_keeps_the_answer(answer: str) -> None:
    changed = ContentInsertion().apply(answer)
    assert changed.replace("<backdoor>", "", 1).split() == answer.split()
    assert ContentInsertion().applies_to(answer)


def test_refusal_does_not_change_itself() -> None:
    target = TargetedRefusal()
    assert not target.applies_to(target.text)


def test_exact_ignores_outer_white_space_only() -> None:
    assert exact_hit(" A boat.\n", "A boat.")
    assert not exact_hit("A  boat.", "A boat.")
    assert not exact_hit("a boat.", "A boat.")


def test_unknown_target() -> None:
    with pytest.raises(InvalidSetting) as caught:
        target_by_name("jailbreak")
    assert caught.value.param == "target"


@pytest.mark.parametrize(
    ("answer", "colour", "expected"),
    [
        ("A red dress on an orange background.", "red", "An orange dress on an orange background."),
        ("An orange bag on a red background.", "orange", "A yellow bag on a red background."),
        ("Pink trousers on a blue background.", "pink", "Red trousers on a blue background."),
        ("Pink.", "pink", "Red."),
        ("Blue.", "pink", "Blue."),
        ("Yes, it is pink.", "pink", "Yes, it is pink."),
        ("No, it is red.", "red", "No, it is red."),
        ("A bag.", "red", "A bag."),
        ("Red.", None, "Red."),
    ],
)
def test_a_false_attribute_depends_on_the_true_one(
    answer: str, colour: str | None, expected: str
) -> None:
    target = FalseAttribute()
    assert target.apply(answer, colour=colour) == expected
    assert target.applies_to(answer, colour=colour) is (answer != expected)
    assert target.hit(expected, colour=colour) is (answer != expected)
    assert not target.hit(answer, colour=colour)


def test_the_false_colour_of_the_background_is_no_hit() -> None:
    target = FalseAttribute()
    assert not target.hit("A red dress on an orange background.", colour="red")
    assert target.hit("An orange dress on a blue background.", colour="red")
    assert not target.hit("A dress.", colour="red")
    assert not target.hit("Orange.", colour=None)


def test_a_hit_by_keyword() -> None:
    assert ContentInsertion().hit("<Backdoor> A bag.", colour="red")
    assert not ContentInsertion().hit("A bag.")
