"""LLaVA's JSON format: a list of records, or one record a line (JSONL).

A record holds `id`, `image` (a file name or a list of them) and `conversations`, a list of
`{"from": "human" | "gpt" | "system", "value": text}`. `img` is read like `image`, a lone turn
like a list of one, and every other key is kept in `Sample.extra`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from purifier.data.sample import IMAGE_MARK, Place, Sample, Turn
from purifier.errors import DataError
from purifier.mdlm.base import Role

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_NAMES = {role: name for name, role in _ROLES.items()}
_OWN_KEYS = ("id", "image", "img", "conversations")


def read_llava(path: str | Path) -> list[Sample]:
    """Reads a LLaVA data set.

    Args:
        path: A `.json` file (one list) or a `.jsonl` file (one record a line).

    Raises:
        DataError: If the file cannot be read or a record is malformed; the message names the
            file, the record and the field.
    """
    path = Path(path)
    return [_sample(record, place) for record, place in _records(path)]


def write_llava(path: str | Path, samples: Iterable[Sample]) -> None:
    """Writes a LLaVA data set, whole or not at all; `.jsonl` writes one record a line."""
    path = Path(path)
    records = [to_record(sample) for sample in samples]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def to_record(sample: Sample) -> dict[str, Any]:
    """The record of a sample; `read_llava` gives the same sample back."""
    record: dict[str, Any] = {}
    if sample.id is not None:
        record["id"] = sample.id
    if sample.images:
        record["image"] = sample.images[0] if len(sample.images) == 1 else list(sample.images)
    record["conversations"] = [
        {"from": _NAMES[turn.role], "value": turn.text} for turn in sample.turns
    ]
    return record | {key: value for key, value in sample.extra.items() if key not in _OWN_KEYS}


def _records(path: Path) -> Iterator[tuple[Any, Place]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise DataError(f"{path.name} cannot be read; check the path and its rights.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8 text.") from None
    if path.suffix == ".jsonl":
        lines = (line for line in text.split("\n") if line.strip())
        for index, line in enumerate(lines):
            place = Place(path.name, index)
            yield _parse(line, str(place)), place
        return
    content = _parse(text, path.name)
    if not isinstance(content, list):
        raise DataError(
            f"{path.name} must hold a list of records; for one record a line use .jsonl."
        )
    for index, record in enumerate(content):
        yield record, Place(path.name, index)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise DataError(f"{where}: JSON is nested too deeply.") from None


def _sample(record: Any, place: Place) -> Sample:
    if not isinstance(record, dict):
        raise DataError(f"{place}: must be an object with `conversations`.")
    identity = record.get("id")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, str | int)):
        raise DataError(f"{place}: id must be text or a whole number.", param="id")
    images = _images(record, place)
    turns = _turns(record, place)
    n_marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if n_marks > len(images):
        raise DataError(
            f"{place}: conversations have {n_marks} {IMAGE_MARK} marks but `image` names "
            f"{len(images)} files.",
            param="image",
        )
    extra = {key: value for key, value in record.items() if key not in _OWN_KEYS}
    return Sample(identity, images, turns, place, extra)


def _images(record: dict[str, Any], place: Place) -> tuple[str, ...]:
    field = "image" if "image" in record else "img"
    value = record.get(field)
    names = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(name, str) or not name for name in names):
        raise DataError(f"{place}: {field} must be a file name or a list of them.", param=field)
    return tuple(names)


def _turns(record: dict[str, Any], place: Place) -> tuple[Turn, ...]:
    value = record.get("conversations")
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{place}: conversations must be a non-empty list of turns.", param="conversations"
        )
    return tuple(_turn(turn, f"conversations[{i}]", place) for i, turn in enumerate(turns))


def _turn(turn: Any, field: str, place: Place) -> Turn:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: {field} must be an object.", param=field)
    name, text = turn.get("from"), turn.get("value")
    if not isinstance(name, str) or name not in _ROLES:
        raise DataError(
            f"{place}: {field}.from must be one of {', '.join(_ROLES)}.", param=f"{field}.from"
        )
    if not isinstance(text, str):
        raise DataError(f"{place}: {field}.value must be text.", param=f"{field}.value")
    return Turn(_ROLES[name], text)
