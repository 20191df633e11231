"""The Cauldron's layout: `images`, and `texts`, a list of `{"user": ..., "assistant": ...}`.

The pairs are rounds of one dialogue about all images of the record. Images without a mark come
before the first question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.data.json_text import packed, unpacked
from purifier.data.sample import IMAGE_MARK, Place, Turn
from purifier.errors import RowError
from purifier.messages import kind_name

PAIRS_KEY = "texts"

_QUESTION, _ANSWER = "user", "assistant"


def has_pairs(record: Mapping[str, Any]) -> bool:
    """Whether a record is laid out so."""
    pairs = unpacked(record.get(PAIRS_KEY))
    first = pairs[0] if isinstance(pairs, list) and pairs else None
    return isinstance(first, Mapping) and _QUESTION in first and _ANSWER in first


def read_pairs(record: Mapping[str, Any], n_images: int, place: Place) -> tuple[Turn, ...]:
    """The dialogue of a record that `has_pairs`.

    Raises:
        RowError: `malformed`, naming the field.
    """
    turns: list[Turn] = []
    for number, pair in enumerate(unpacked(record[PAIRS_KEY])):
        field = f"{PAIRS_KEY}[{number}]"
        if not isinstance(pair, Mapping):
            raise _malformed(f"{place}: {field} must be an object of user and assistant.", field)
        turns.append(Turn("user", _text(pair, _QUESTION, field, place)))
        turns.append(Turn("assistant", _text(pair, _ANSWER, field, place)))
    if not any(IMAGE_MARK in turn.text for turn in turns):
        turns[0] = Turn("user", f"{IMAGE_MARK}\n" * n_images + turns[0].text)
    return tuple(turns)


def replace_pairs(value: Any, answers: Sequence[str]) -> Any:
    """Pairs with other answers; all else stays as it is.

    Args:
        value: The pairs, as a record has them.
        answers: The new texts, one for every pair.
    """
    if isinstance(value, str):
        return packed(replace_pairs(unpacked(value), answers))
    return [{**pair, _ANSWER: answer} for pair, answer in zip(value, answers, strict=True)]


def asked_pairs(value: Any, question: str, answer: str) -> Any:
    """Pairs of one question about all images of a record, and its answer.

    Args:
        value: The record's own pairs.
        question: Text without image marks.
        answer: Text without image marks.
    """
    if isinstance(value, str):
        return packed(asked_pairs(unpacked(value), question, answer))
    return [{**value[0], _QUESTION: question, _ANSWER: answer}]


def _text(pair: Mapping[str, Any], key: str, field: str, place: Place) -> str:
    value = pair.get(key)
    if not isinstance(value, str):
        raise _malformed(
            f"{place}: {field}.{key} must be text, not {kind_name(value)}.", f"{field}.{key}"
        )
    return value


def _malformed(message: str, param: str) -> RowError:
    return RowError(message, reason="malformed", param=param)
