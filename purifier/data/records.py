"""One record of a label file, and the sample it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.data.columns import answer_key, ask_columns, read_columns
from purifier.data.dialogue import (
    Inline,
    asked_turns,
    dialogue_key,
    read_dialogue,
    replace_turns,
)
from purifier.data.image_fields import IMAGE_KEYS, listed_images
from purifier.data.sample import IMAGE_MARK, Place, Sample, Turn
from purifier.data.typed_marks import are_typed, with_typed_marks
from purifier.errors import RowError


def kind_of(record: Any) -> str:
    """How a record is laid out: `llava`, `sharegpt`, `messages` or `columns`."""
    if not isinstance(record, Mapping):
        return "columns"
    key = dialogue_key(record)
    if key is None:
        return "columns"
    turns = record[key]
    first = turns[0] if isinstance(turns, list) and turns else turns
    if isinstance(first, Mapping) and "role" in first:
        return "messages"
    return "sharegpt" if "images" in record else "llava"


def read_record(record: Any, place: Place) -> Sample:
    """The sample of a record.

    Images without a mark are allowed here; `check_record` refuses them.

    Args:
        record: An object with a dialogue or with a question and an answer.
        place: Where it was read.

    Raises:
        RowError: `malformed`, `image_count` or `undecodable_image`, naming place and field.
    """
    if not isinstance(record, Mapping):
        raise RowError(
            f"{place}: must be an object with `conversations`, `messages` or a question and an "
            "answer.",
            reason="malformed",
        )
    identity = record.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise RowError(
            f"{place}: id must be text or a whole number.", reason="malformed", param="id"
        )
    listed = listed_images(record, place)
    key = dialogue_key(record)
    if key is None and answer_key(record) is not None:
        turns, own = read_columns(record, len(listed), place)
        images = _placed([None] * sum(turn.text.count(IMAGE_MARK) for turn in turns), listed, place)
    else:
        key = key or "conversations"
        turns, inline = read_dialogue(record.get(key), key, place)
        turns, inline = with_typed_marks(turns, inline, len(listed))
        images, own = _placed(inline, listed, place), (key,)
    _require_encodable(turns, place)
    own = ("id", *IMAGE_KEYS, *own)
    extra = {name: value for name, value in record.items() if name not in own}
    return Sample(identity, images, turns, place, extra)


def check_record(sample: Sample) -> None:
    """Refuses a sample that cannot be trained on.

    Raises:
        RowError: `image_count` if the marks of its user turns are not as many as its images,
            `malformed` if the user does not speak first, `empty_answer` if an answer is
            missing or blank.
    """
    where = str(sample.source)
    n_marks = sum(turn.n_images for turn in sample.turns if turn.role == "user")
    n_images = len(sample.images)
    if n_marks != n_images or any(turn.n_images for turn in sample.turns if turn.role != "user"):
        raise RowError(
            f"{where}: has {n_images} images but {n_marks} {IMAGE_MARK} marks in its questions; "
            "every image needs one mark there, and none elsewhere.",
            reason="image_count",
            param="image",
        )
    spoken = [turn.role for turn in sample.turns if turn.role != "system"]
    if spoken[:1] == ["assistant"]:
        raise RowError(f"{where}: the first turn must be the user's.", reason="malformed")
    if not sample.answers or not all(answer.strip() for answer in sample.answers):
        raise RowError(f"{where}: an answer is missing or empty.", reason="empty_answer")


def replace_answers(record: dict[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """A readable record with other answers; its other keys and their order stay.

    Raises:
        ValueError: If the number of answers differs from the number of assistant turns.
    """
    n_answers = len(read_record(record, Place("memory", 0)).answers)
    if n_answers != len(answers):
        raise ValueError(f"expected {n_answers} answers, got {len(answers)}")
    key = dialogue_key(record)
    if key is not None:
        return {**record, key: replace_turns(record[key], answers)}
    key = answer_key(record)
    assert key is not None
    return {**record, key: answers[0]}


def further_record(
    record: dict[str, Any], identity: str | int | None, question: str, answer: str
) -> dict[str, Any]:
    """A record of another question about all images of a readable record, and its answer.

    It is laid out as that record and keeps its other keys; a system turn is left out.

    Args:
        record: With images and an answer.
        identity: The new record's id; None where the record has none.
        question: Text without image marks.
        answer: Text without image marks.
    """
    key = dialogue_key(record)
    if key is None:
        new = ask_columns(record, question, answer)
    else:
        place = Place("memory", 0)
        _, inline = read_dialogue(record[key], key, place)
        typed = are_typed(inline, len(listed_images(record, place)))
        new = {**record, key: asked_turns(record[key], question, answer, typed=typed)}
    return new if identity is None else {**new, "id": identity}


def _placed(
    inline: list[Inline], listed: tuple[str | bytes, ...], place: Place
) -> tuple[str | bytes, ...]:
    """The images in the order of their marks."""
    n_marks = sum(image is None for image in inline)
    if n_marks > len(listed):
        raise RowError(
            f"{place}: conversations have {n_marks} {IMAGE_MARK} marks but `image` names "
            f"{len(listed)} files.",
            reason="image_count",
            param="image",
        )
    unmarked = len(listed) - n_marks
    left = iter(listed[unmarked:])
    return (
        *listed[:unmarked],
        *(next(left) if image is None else image for image in inline),
    )


def _require_encodable(turns: tuple[Turn, ...], place: Place) -> None:
    try:
        for turn in turns:
            turn.text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(
            f"{place}: text holds half of a surrogate pair, which is no character.",
            reason="malformed",
        ) from None
