"""What is recognised in a record so that it is refused by its name: media and layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from purifier.data.sample import Place, Turn
from purifier.errors import RowError

MEDIA_KEYS = ("video", "videos", "video_path", "audio", "audios", "audio_path")
"""Keys of media that no model here takes."""

_MARK = re.compile(r"<(?:video|audio)>")
_MARK_AT_THE_START = re.compile(r"\s*<(?:video|audio)>\s*\n")
_CHOSEN_ANSWER = "multiple_choice_answer"
_ANSWERS = "answers"


def refuse_media(record: Mapping[str, Any], place: Place) -> None:
    """Refuses a record with a video or a sound: without it, its text teaches guessing.

    Raises:
        RowError: `malformed`, naming the field.
    """
    key = next((key for key in MEDIA_KEYS if record.get(key)), None)
    if key is not None:
        raise RowError(
            f"{place}: {key} is not read, images alone are; leave the row out, or put frames of "
            "it into images.",
            reason="malformed",
            param=key,
        )


def refuse_media_marks(record: Mapping[str, Any], turns: Sequence[Turn], place: Place) -> None:
    """Refuses a record whose questions have a mark for a video or a sound that is not there.

    In a record without a key for such media the words may be text, as in a question about HTML;
    a mark on a line of its own at the start of a question is none.

    Raises:
        RowError: `malformed`, naming the mark.
    """
    pattern = _MARK if any(key in record for key in MEDIA_KEYS) else _MARK_AT_THE_START
    for turn in turns:
        found = pattern.search(turn.text) if pattern is _MARK else pattern.match(turn.text)
        if found is not None and turn.role == "user":
            raise RowError(
                f"{place}: a question has the mark {found[0].strip()}, and nothing but images is "
                "read; leave the row out, or put frames into images and <image> into the text.",
                reason="malformed",
            )


def is_vqav2(record: Any) -> bool:
    """Whether a record without an answer of its own has VQAv2's list of ten people's answers."""
    if not isinstance(record, Mapping) or not isinstance(record.get(_ANSWERS), list):
        return False
    answers = record[_ANSWERS]
    return _CHOSEN_ANSWER in record or any(
        isinstance(each, Mapping) and "answer" in each for each in answers[:1]
    )


def vqav2_refusal() -> str:
    """What to do about a data set in VQAv2's layout."""
    return (
        f"this is VQAv2's layout, whose `{_ANSWERS}` are those of ten people; write the one to "
        f"train on, such as `{_CHOSEN_ANSWER}`, as `answer`."
    )


def refuse_answers(record: Mapping[str, Any], place: Place) -> None:
    """Refuses a record that has a list of answers to choose from.

    Raises:
        RowError: `malformed`, naming the field and, if it is VQAv2's, the layout.
    """
    if is_vqav2(record):
        raise RowError(f"{place}: {vqav2_refusal()}", reason="malformed", param=_ANSWERS)
    if record.get(_ANSWERS) is not None:
        raise RowError(
            f"{place}: {_ANSWERS} is not read; write the one to train on as `answer`.",
            reason="malformed",
            param=_ANSWERS,
        )
