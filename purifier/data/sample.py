"""One sample of a data set, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image

from purifier.data.image_files import image_file
from purifier.errors import DataError, ImageError, RowError
from purifier.imaging.decode import DEFAULT_LIMITS, decode_image, read_image_file
from purifier.mdlm.base import Message, Role
from purifier.messages import quoted

IMAGE_MARK = "<image>"
"""Stands for one image inside a turn's text (LLaVA's mark)."""

MAX_PIXELS = DEFAULT_LIMITS.pixels
"""Largest image that is decoded."""


@dataclass(frozen=True)
class Place:
    """Where a sample was read: a file, and the number of its record, counted from 0."""

    file: str
    record: int

    def __str__(self) -> str:
        return f"{self.file}, record {self.record}"


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue; every `IMAGE_MARK` in its text stands for one image.

    Attributes:
        role: Who speaks.
        text: What is said.
        typed: Marks that are text instead, by their number in this text, counted from 0.
    """

    role: Role
    text: str
    typed: tuple[int, ...] = ()

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text before, between and behind its images."""
        first, *rest = self.text.split(IMAGE_MARK)
        pieces = [first]
        for number, piece in enumerate(rest):
            if number in self.typed:
                pieces[-1] += IMAGE_MARK + piece
            else:
                pieces.append(piece)
        return tuple(pieces)

    @property
    def n_images(self) -> int:
        """Images that its marks stand for."""
        return len(self.pieces) - 1


@dataclass(frozen=True)
class Sample:
    """A dialogue about some images.

    Attributes:
        id: The record's own id, as it was written; None if it had none.
        images: In the order of the marks: an image file, relative to the data set's image
            folder, or the bytes of an encoded image that the data set held itself.
        turns: The dialogue.
        source: Where it was read; None for samples made in memory. Not part of equality.
        extra: Every other key of the record.
        remarks: Codes of what the reader had to assume, of `purifier.data.remarks.REMARKS`.
            Not part of equality.
    """

    id: str | int | None
    images: tuple[str | bytes, ...]
    turns: tuple[Turn, ...]
    source: Place | None = field(default=None, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def question(self) -> str:
        """Text of the first user turn without image marks; empty if there is none."""
        pieces = next((turn.pieces for turn in self.turns if turn.role == "user"), ())
        return "".join(pieces).strip()

    @property
    def answer(self) -> str:
        """Text of the first assistant turn; empty if there is none."""
        return next((turn.text for turn in self.turns if turn.role == "assistant"), "")

    @property
    def image_files(self) -> tuple[str, ...]:
        """Names of the image files.

        Raises:
            DataError: If an image is held by the data set itself.
        """
        names = tuple(image for image in self.images if isinstance(image, str))
        if len(names) < len(self.images):
            where = f"{self.source}: " if self.source else ""
            raise DataError(f"{where}images must be files in the image folder.", param="image")
        return names

    @property
    def answers(self) -> tuple[str, ...]:
        """Texts of the assistant turns."""
        return tuple(turn.text for turn in self.turns if turn.role == "assistant")

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

    Args and the places of images without a mark as in `dialogue_messages`.
    """
    whole = dialogue_messages(sample, images)
    return list(takewhile(lambda message: message.role != "assistant", whole))


def dialogue_messages(sample: Sample, images: tuple[Image.Image, ...]) -> list[Message]:
    """The whole dialogue, images in the places of their marks.

    Images without a mark come before the text of the first user turn.

    Args:
        sample: The sample.
        images: Its opened images, in order.
    """
    messages: list[Message] = []
    left = list(images)
    n_marks = sum(turn.n_images for turn in sample.turns)
    unmarked = left[: max(0, len(left) - n_marks)]
    del left[: len(unmarked)]
    for turn in sample.turns:
        content: list[str | Image.Image] = []
        if turn.role == "user" and unmarked:
            content.extend(unmarked)
            unmarked = []
        for index, piece in enumerate(turn.pieces):
            if index:
                content.append(left.pop(0))
            if piece.strip():
                content.append(piece.strip())
        messages.append(Message(turn.role, tuple(content)))
    return messages


def open_image(folder: Path, image: str | bytes, place: Place | None = None) -> Image.Image:
    """Opens one image of a data set as RGB; see `purifier.imaging.decode`.

    Args:
        folder: The data set's image folder.
        image: The file, relative to it, or the bytes of an encoded image.
        place: Where the sample was read, for the error.

    Raises:
        RowError: `missing_image` if the file lies outside the folder (also behind a symbolic
            link) or is no file; `undecodable_image` if the decoder refuses it.
    """
    where = f"{place}: " if place else ""
    if isinstance(image, bytes):
        return _decode(image, f"{where}the embedded image")
    path = image_file(folder, image, where)
    return _decode(path, f"{where}image {quoted(image)}")


def _decode(file: Path | bytes, what: str) -> Image.Image:
    limits = replace(DEFAULT_LIMITS, pixels=MAX_PIXELS)
    try:
        if isinstance(file, bytes):
            return decode_image(file, limits)
        return read_image_file(file, limits)
    except ImageError as error:
        raise RowError(
            f"{what}: {error.message}", reason="undecodable_image", param="image"
        ) from None
