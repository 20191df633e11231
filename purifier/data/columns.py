"""Records without a dialogue: a question column and an answer column, or a caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purifier.data.sample import IMAGE_MARK, Place, Turn
from purifier.errors import RowError
from purifier.messages import kind_name

QUESTION = "question"
"""The key that a question gets where a record has none."""
QUESTION_KEYS = (QUESTION, "prompt", "query", "instruction")
ANSWER_KEYS = ("answer", "response", "output", "completion")
CAPTION_KEYS = ("caption", "text")
CAPTION_QUESTION = "Describe this image in detail."
"""What a caption answers; the prompt of DiSP's authors."""


def answer_key(record: Mapping[str, Any]) -> str | None:
    """The key of a record's answer or caption; None if it has none."""
    keys = (*ANSWER_KEYS, *CAPTION_KEYS)
    return next((key for key in keys if record.get(key) is not None), None)


def ask_columns(record: Mapping[str, Any], question: str, answer: str) -> dict[str, Any]:
    """A record with another question, about all its images, and its answer.

    A record that has a caption alone gets a question of its own.

    Args:
        record: A readable record.
        question: Text without image marks.
        answer: Text without image marks.
    """
    key = answer_key(record)
    assert key is not None
    asked = question_key(record) or next((key for key in QUESTION_KEYS if key in record), QUESTION)
    rest = {"input": ""} if asked == "instruction" and record.get("input") else {}
    return {**record, asked: question, **rest, key: answer}


def question_key(record: Mapping[str, Any]) -> str | None:
    """The key of a record's question; None if it has none."""
    return next((key for key in QUESTION_KEYS if record.get(key) is not None), None)


def read_columns(
    record: Mapping[str, Any], n_images: int, place: Place
) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """The dialogue of a question and its answer.

    Alpaca's `input` continues the question. Images without a mark come before the question.

    Returns:
        The turns, and the keys that they were read from.

    Raises:
        RowError: `malformed`, naming the column.
    """
    answer = answer_key(record)
    assert answer is not None
    question = question_key(record)
    if question is None and answer not in CAPTION_KEYS:
        raise _malformed(f"{place}: has {answer} but no question.", "question")
    if record.get("history"):
        raise _malformed(
            f"{place}: history is not read; write several turns as conversations.", "history"
        )
    if question is None and not n_images:
        raise RowError(
            f"{place}: has {answer} but neither an image nor a question; name its image or "
            "give the question.",
            reason="image_count",
            param="image",
        )
    text = CAPTION_QUESTION if question is None else _text(record, question, place)
    keys = [answer] if question is None else [question, answer]
    if question == "instruction" and record.get("input"):
        text = f"{text}\n{_text(record, 'input', place)}"
        keys.append("input")
    if IMAGE_MARK not in text:
        text = f"{IMAGE_MARK}\n" * n_images + text
    return (Turn("user", text), Turn("assistant", _text(record, answer, place))), tuple(keys)


def _text(record: Mapping[str, Any], key: str, place: Place) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise _malformed(f"{place}: {key} must be text, not {kind_name(value)}.", key)
    return value


def _malformed(message: str, param: str) -> RowError:
    return RowError(message, reason="malformed", param=param)
