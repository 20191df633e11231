"""What is asked about a sample."""

from __future__ import annotations

import pytest
from PIL import Image

from purifier.data.sample import Sample, Turn, question_messages
from purifier.mdlm.base import Message
from purifier.purification.dialogue import answer_prompt, image_prompt
from tests.purification.conftest import sample

RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ((RED,), "<image>\nWhat is it?"),
        ((RED,), "What is it?"),
        ((RED,), "Look: <image> What is it?"),
        ((RED, BLUE), "<image>\n<image>\nWhat differs?"),
        ((RED, BLUE), "What differs from <image>?"),
    ],
)
def test_the_first_question_is_the_samples(images: tuple[Image.Image, ...], text: str) -> None:
    names = [f"{number}.png" for number in range(len(images))]
    each = sample("a", names, text, "An answer.", "And now?", "Another.")
    assert answer_prompt(each, images, 0, []) == question_messages(each, images)


def test_a_later_question_follows_new_answers() -> None:
    each = sample("a", [0, 1], "<image>\nWhat?", "old", "And <image>?", "old", "Sure?", "old")
    assert answer_prompt(each, (RED, BLUE), 2, ["new", "newer"]) == [
        Message("user", (RED, "What?")),
        Message("assistant", ("new",)),
        Message("user", ("And", BLUE, "?")),
        Message("assistant", ("newer",)),
        Message("user", ("Sure?",)),
    ]


def test_a_system_turn_stays_in_front() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "What?"), Turn("assistant", "A bag."))
    assert answer_prompt(Sample("a", ("0.png",), turns), (RED,), 0, []) == [
        Message("system", ("Be brief.",)),
        Message("user", (RED, "What?")),
    ]


def test_a_prompt_takes_the_first_questions_place() -> None:
    each = sample("a", [0], "<image>\nWhat?", "old", "Sure?", "old")
    assert answer_prompt(each, (RED,), 0, [], "Describe.") == image_prompt((RED,), "Describe.")
    assert answer_prompt(each, (RED,), 1, ["new"], "Describe.")[0] == Message(
        "user", (RED, "What?")
    )
