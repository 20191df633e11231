"""Dialogues in a record: LLaVA's and ShareGPT's `conversations`, OpenAI's `messages`.

A turn is `{"from": "human", "value": text}` or `{"role": "user", "content": text}`; content may
be a list of parts, of which images stand for themselves (`image_url`) or for the next image that
the record lists (`{"type": "image"}`). A dialogue may be written as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from purifier.data.image_fields import one_image
from purifier.data.json_text import packed, unpacked
from purifier.data.sample import IMAGE_MARK, Place, Turn
from purifier.errors import RowError
from purifier.mdlm.base import Role
from purifier.messages import kind_name

DIALOGUE_KEYS = ("conversations", "messages", "conversation")
ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "developer": "system",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")

Inline = str | bytes | None
"""An image where it stands in a dialogue; None: the next one that the record lists."""


def dialogue_key(record: Mapping[str, Any]) -> str | None:
    """The key of a record's dialogue; None if it has none."""
    return next((key for key in DIALOGUE_KEYS if record.get(key) is not None), None)


def read_dialogue(value: Any, key: str, place: Place) -> tuple[tuple[Turn, ...], list[Inline]]:
    """Turns of a dialogue, and its images in the order of their marks.

    Raises:
        RowError: `malformed`, naming the field.
    """
    value = unpacked(value)
    turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, str):
        raise _malformed(
            f"{place}: {key} is text and must be a non-empty list of turns, or the JSON of one "
            "(with double quotes: \"from\", not 'from').",
            key,
        )
    if not isinstance(turns, list) or not turns:
        raise _malformed(f"{place}: {key} must be a non-empty list of turns.", key)
    images: list[Inline] = []
    read = tuple(_turn(turn, f"{key}[{i}]", place, images) for i, turn in enumerate(turns))
    return read, images


def replace_turns(value: Any, answers: Sequence[str]) -> Any:
    """A dialogue whose assistant turns have other texts; all else stays as it is.

    Args:
        value: The dialogue, as `read_dialogue` takes it.
        answers: The new texts, in order, one for every assistant turn.
    """
    if isinstance(value, str):
        return packed(replace_turns(unpacked(value), answers))
    if isinstance(value, dict):
        return replace_turns([value], answers)[0]
    left = iter(answers)
    return [_answered(turn, next(left)) if _is_answer(turn) else turn for turn in value]


def asked_turns(value: Any, question: str, answer: str, *, typed: bool = False) -> Any:
    """A dialogue of one question about all images of another one, and its answer.

    Both turns are laid out as the first of their role; the images come before the question.

    Args:
        value: The other dialogue, as `read_dialogue` takes it, with both roles.
        question: Text without image marks.
        answer: Text without image marks.
        typed: Whether marks in the other dialogue's texts are text.
    """
    if isinstance(value, str):
        return packed(asked_turns(unpacked(value), question, answer, typed=typed))
    turns = [value] if isinstance(value, dict) else value
    users = [turn for turn in turns if ROLES[turn[_fields(turn)[0]]] == "user"]
    images = [piece for turn in users for piece in _image_pieces(turn)]
    if typed:
        images = [piece for piece in images if not isinstance(piece, str)]
    field = _fields(users[0])[1]
    asked: Any
    if isinstance(users[0][field], list) or not all(isinstance(piece, str) for piece in images):
        asked = [*(_text_part(users, piece) for piece in images), _text_part(users, question)]
    else:
        asked = "\n".join([*images, question])
    return [{**users[0], field: asked}, _answered(next(filter(_is_answer, turns)), answer)]


def _image_pieces(turn: Mapping[str, Any]) -> list[Any]:
    """The images of a turn: a mark for each that the record lists, else its part."""
    content = turn[_fields(turn)[1]]
    pieces: list[Any] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str) or _is_text(part):
            text = part if isinstance(part, str) else part["text"]
            pieces += [IMAGE_MARK] * text.count(IMAGE_MARK)
        else:
            pieces.append(part)
    return pieces


def _text_part(turns: Sequence[Mapping[str, Any]], piece: Any) -> Any:
    """Text as a part of content, laid out as the first text of such turns."""
    if not isinstance(piece, str):
        return piece
    contents = [turn[_fields(turn)[1]] for turn in turns]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    found = next((part for part in parts if _is_text(part)), {"type": "text"})
    return piece if isinstance(found, str) else {**found, "text": piece}


def _is_answer(turn: dict[str, Any]) -> bool:
    return ROLES[turn[_fields(turn)[0]]] == "assistant"


def _answered(turn: dict[str, Any], answer: str) -> dict[str, Any]:
    _, field = _fields(turn)
    content = turn[field]
    if not isinstance(content, list):
        return {**turn, field: answer}
    first = next((i for i, part in enumerate(content) if _is_text(part)), None)
    if first is None:
        return {**turn, field: [*content, {"type": "text", "text": answer}]}
    part = content[first]
    new = answer if isinstance(part, str) else {**part, "text": answer}
    rest = [part for part in content[first + 1 :] if not _is_text(part)]
    return {**turn, field: [*content[:first], new, *rest]}


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or part.get("type") in _TEXT_PARTS


def _fields(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the fields of a turn's role and text."""
    return (
        "role" if "role" in turn and "from" not in turn else "from",
        "content" if "content" in turn and "value" not in turn else "value",
    )


def _turn(turn: Any, field: str, place: Place, images: list[Inline]) -> Turn:
    if not isinstance(turn, dict):
        raise _malformed(f"{place}: {field} must be an object.", field)
    role_field, text_field = _fields(turn)
    name, content = turn.get(role_field), turn.get(text_field)
    if not isinstance(name, str) or name not in ROLES:
        raise _malformed(
            f"{place}: {field}.{role_field} must be one of {', '.join(ROLES)}.",
            f"{field}.{role_field}",
        )
    where = f"{field}.{text_field}"
    if isinstance(content, list):
        pieces = [_part(part, f"{where}[{i}]", place, images) for i, part in enumerate(content)]
        return Turn(ROLES[name], "\n".join(piece for piece in pieces if piece))
    return Turn(ROLES[name], _text(content, where, place, images))


def _text(text: Any, field: str, place: Place, images: list[Inline]) -> str:
    if not isinstance(text, str):
        raise _malformed(f"{place}: {field} must be text, not {kind_name(text)}.", field)
    images.extend([None] * text.count(IMAGE_MARK))
    return text


def _part(part: Any, field: str, place: Place, images: list[Inline]) -> str:
    if isinstance(part, str):
        return _text(part, field, place, images)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return _text(part.get("text"), f"{field}.text", place, images)
    if kind not in _IMAGE_PARTS:
        raise _malformed(
            f"{place}: {field}.type must be text, image or image_url; other media are not read.",
            field,
        )
    value = next((part[key] for key in _IMAGE_PARTS if part.get(key) is not None), None)
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    if value is None and kind != "image":
        raise _malformed(f"{place}: {field}.{kind} must name an image.", f"{field}.{kind}")
    images.append(None if value is None else one_image(value, f"{field}.{kind}", place))
    return IMAGE_MARK


def _malformed(message: str, param: str) -> RowError:
    return RowError(message, reason="malformed", param=param)
