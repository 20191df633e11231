"""One record of a label file, and the sample it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from purifier.data.cauldron import PAIRS_KEY, asked_pairs, has_pairs, read_pairs, replace_pairs
from purifier.data.columns import answer_key, ask_columns, read_columns
from purifier.data.dialogue import (
    Inline,
    asked_turns,
    dialogue_key,
    read_dialogue,
    replace_turns,
)
from purifier.data.image_fields import IMAGE_KEYS, has_null_image, listed_images
from purifier.data.json_text import unpacked
from purifier.data.remarks import MARK_ADDED, NULL_IMAGE
from purifier.data.sample import IMAGE_MARK, Place, Sample, Turn
from purifier.data.typed_marks import are_typed, with_typed_marks
from purifier.data.unread import refuse_answers, refuse_media, refuse_media_marks
from purifier.errors import RowError


def kind_of(record: Any) -> str:
    """How a record is laid out: `llava`, `sharegpt`, `messages`, `cauldron` or `columns`."""
    if not isinstance(record, Mapping):
        return "columns"
    key = dialogue_key(record)
    if key is None:
        return "cauldron" if has_pairs(record) else "columns"
    turns = unpacked(record[key])
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
    refuse_media(record, place)
    listed = listed_images(record, place)
    turns, images, own = _contents(record, listed, place)
    refuse_media_marks(record, turns, place)
    _require_encodable(identity, images, turns, place)
    own = ("id", *IMAGE_KEYS, *own)
    extra = {name: value for name, value in record.items() if name not in own}
    remarks = (NULL_IMAGE,) if not images and has_null_image(record) else ()
    return Sample(identity, images, turns, place, extra, remarks)


def _contents(
    record: Mapping[str, Any], listed: tuple[str | bytes, ...], place: Place
) -> tuple[tuple[Turn, ...], tuple[str | bytes, ...], tuple[str, ...]]:
    """Turns, images in the order of their marks, and the keys that the turns were read from."""
    key = dialogue_key(record)
    if key is not None:
        turns, inline = read_dialogue(record[key], key, place)
        turns, inline = with_typed_marks(turns, inline, len(listed))
        return turns, _placed(inline, listed, place), (key,)
    own: tuple[str, ...]
    if has_pairs(record):
        turns, own = read_pairs(record, len(listed), place), (PAIRS_KEY,)
    elif answer_key(record) is not None:
        turns, own = read_columns(record, len(listed), place)
    else:
        refuse_answers(record, place)
        raise RowError(
            f"{place}: conversations must be a non-empty list of turns; or give messages, or a "
            "question and an answer.",
            reason="malformed",
            param="conversations",
        )
    marks: list[Inline] = [None] * sum(turn.text.count(IMAGE_MARK) for turn in turns)
    return turns, _placed(marks, listed, place), own


def with_mark(sample: Sample) -> Sample:
    """The sample with a mark in front of its first question, if it has one image and no mark."""
    if len(sample.images) != 1 or any(turn.n_images for turn in sample.turns):
        return sample
    spoken = next((n for n, turn in enumerate(sample.turns) if turn.role != "system"), None)
    if spoken is None or sample.turns[spoken].role != "user":
        return sample
    turns = list(sample.turns)
    typed = tuple(number + 1 for number in turns[spoken].typed)
    turns[spoken] = Turn("user", f"{IMAGE_MARK}\n{turns[spoken].text}", typed)
    return replace(sample, turns=tuple(turns), remarks=(*sample.remarks, MARK_ADDED))


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
    if has_pairs(record):
        return {**record, PAIRS_KEY: replace_pairs(record[PAIRS_KEY], answers)}
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
    if key is not None:
        place = Place("memory", 0)
        _, inline = read_dialogue(record[key], key, place)
        typed = are_typed(inline, len(listed_images(record, place)))
        new = {**record, key: asked_turns(record[key], question, answer, typed=typed)}
    elif has_pairs(record):
        new = {**record, PAIRS_KEY: asked_pairs(record[PAIRS_KEY], question, answer)}
    else:
        new = ask_columns(record, question, answer)
    return new if identity is None else {**new, "id": identity}


def _placed(
    inline: list[Inline], listed: tuple[str | bytes, ...], place: Place
) -> tuple[str | bytes, ...]:
    """The images in the order of their marks."""
    n_marks = sum(image is None for image in inline)
    if n_marks > len(listed):
        raise RowError(
            f"{place}: its text has {n_marks} {IMAGE_MARK} marks, but {len(listed)} images are "
            "named for them; name one for every mark.",
            reason="image_count",
            param="image",
        )
    unmarked = len(listed) - n_marks
    left = iter(listed[unmarked:])
    return (
        *listed[:unmarked],
        *(next(left) if image is None else image for image in inline),
    )


def _require_encodable(
    identity: Any, images: tuple[str | bytes, ...], turns: tuple[Turn, ...], place: Place
) -> None:
    """Refuses half characters in what is read: no file and no table takes them."""
    texts = {
        "id": [identity],
        "image": images,
        "the dialogue": [turn.text for turn in turns],
    }
    for field, values in texts.items():
        try:
            for value in values:
                if isinstance(value, str):
                    value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(
                f"{place}: {field} holds half of a surrogate pair, which is no character; write "
                "the whole character.",
                reason="malformed",
                param=None if field == "the dialogue" else field,
            ) from None
