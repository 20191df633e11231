"""Questions about a sample, as dialogues that end with a user turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from purifier.data.sample import Sample, Turn
from purifier.mdlm.base import Message


def answer_prompt(
    sample: Sample,
    images: Sequence[Image.Image],
    number: int,
    answers: Sequence[str],
    prompt: str | None = None,
) -> list[Message]:
    """The dialogue that one of a sample's answers is given to.

    Args:
        sample: The sample.
        images: Its opened images, in order. Those without a mark come before the text of the
            first user turn.
        number: Which answer, counted from 0.
        answers: What the assistant said before: texts of the first `number` answers.
        prompt: Asked at the first answer in place of the sample's own question.
    """
    if prompt is not None and number == 0:
        return image_prompt(images, prompt)
    messages: list[Message] = []
    given = iter(answers)
    pictures = iter(images)
    n_marks = sum(turn.n_images for turn in sample.turns)
    unmarked = [next(pictures) for _ in range(max(0, len(images) - n_marks))]
    n_before = 0
    for turn in sample.turns:
        if turn.role == "assistant":
            if n_before == number:
                break
            n_before += 1
            messages.append(Message("assistant", (next(given),)))
            continue
        content: list[str | Image.Image] = []
        if turn.role == "user" and unmarked:
            content, unmarked = [*unmarked], []
        messages.append(Message(turn.role, (*content, *_content(turn, pictures))))
    return messages


def image_prompt(images: Sequence[Image.Image], prompt: str) -> list[Message]:
    """A prompt about all images of a sample."""
    return [Message("user", (*images, prompt))]


def _content(turn: Turn, pictures: Iterator[Image.Image]) -> Iterator[str | Image.Image]:
    for number, piece in enumerate(turn.pieces):
        if number:
            yield next(pictures)
        if piece.strip():
            yield piece.strip()
