"""One sample of a data set, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from purifier.errors import DataError
from purifier.mdlm.base import Message, Role

IMAGE_MARK = "<image>"
"""Stands for one image inside a turn's text (LLaVA's mark)."""


@dataclass(frozen=True)
class Place:
    """Where a sample was read: a file, and the number of its record, counted from 0."""

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file}, record {self.record}"


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; every `IMAGE_MARK` in its text stands for one image."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """A dialogue about some images.

    Attributes:
        id: The record's own id, as it was written; None if it had none.
        images: Image files, relative to the data set's image folder, in the order of the marks.
        turns: The dialogue.
        source: Where it was read; None for samples made in memory. Not part of equality.
        extra: Every other key of the record.
    """

    id: str | int | None
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: Place | None = field(default=None, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Text of the first user turn without image marks; empty if there is none."""
        text = next((turn.text for turn in self.turns if turn.role == "user"), "")
        return text.replace(IMAGE_MARK, "").strip()

    @property
    def answer(self) -> str:
        """Text of the first assistant turn; empty if there is none."""
        return next((turn.text for turn in self.turns if turn.role == "assistant"), "")

    def with_answers(self, answers: tuple[str, ...]) -> Sample:
        """The same sample with its assistant turns replaced, in order.

        Raises:
            ValueError: If the number of answers differs from the number of assistant turns.
        """
        n_answers = sum(turn.role == "assistant" for turn in self.turns)
        if n_answers != len(answers):
            raise ValueError(f"expected {n_answers} answers, got {len(answers)}")
        left = iter(answers)
        turns = tuple(
            Turn(turn.role, next(left)) if turn.role == "assistant" else turn for turn in self.turns
        )
        return replace(self, turns=turns)


def question_messages(sample: Sample, images: tuple[Image.Image, ...]) -> list[Message]:
    """The dialogue up to its first answer, images in the places of their marks.

    Images without a mark come before the text of the first user turn.

    Args:
        sample: The sample.
        images: Its opened images, in order.
    """
    messages: list[Message] = []
    left = list(images)
    n_marks = sum(turn.text.count(IMAGE_MARK) for turn in sample.turns)
    unmarked = left[: max(0, len(left) - n_marks)]
    del left[: len(unmarked)]
    for turn in sample.turns:
        if turn.role == "assistant":
            break
        content: list[str | Image.Image] = []
        if turn.role == "user" and unmarked:
            content.extend(unmarked)
            unmarked = []
        for index, piece in enumerate(turn.text.split(IMAGE_MARK)):
            if index:
                content.append(left.pop(0))
            if piece.strip():
                content.append(piece.strip())
        messages.append(Message(turn.role, tuple(content)))
    return messages


def open_image(folder: Path, name: str, place: Place | None = None) -> Image.Image:
    """Opens one image of a data set as RGB.

    Args:
        folder: The data set's image folder.
        name: The file, relative to it.
        place: Where the sample was read, for the error.

    Raises:
        DataError: If the file lies outside the folder, is missing or is not an image.
    """
    where = f"{place}: " if place else ""
    root = folder.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise DataError(
            f"{where}image {name!r} lies outside the image folder; move it inside.", param="image"
        )
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(
            f"{where}image {name!r} does not exist in the image folder.", param="image"
        ) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError):
        raise DataError(
            f"{where}image {name!r} cannot be read; it is damaged, too large or no image.",
            param="image",
        ) from None
