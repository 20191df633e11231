"""Small data sets in LLaVA's JSON format, read and written as a whole.

A record holds `id`, `image` (a file name or a list of them) and `conversations`, a list of
`{"from": "human" | "gpt" | "system", "value": text}`. `img` is read like `image`, a lone turn
like a list of one, and every other key is kept in `Sample.extra`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from purifier.data.image_fields import data_url
from purifier.data.json_array import JsonArray
from purifier.data.json_lines import JsonLines
from purifier.data.records import read_record
from purifier.data.sample import Sample
from purifier.errors import RowError
from purifier.mdlm.base import Role

_NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system"}
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
    file = JsonLines(path) if path.suffix.lower() == ".jsonl" else JsonArray(path)
    samples = []
    for place, record in file.records():
        if isinstance(record, RowError):
            raise record
        samples.append(read_record(record, place))
    return samples


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
    """The record of a sample; `read_llava` gives the same sample back.

    A mark that was typed as text (`Turn.typed`) stands in the record as one for an image, for
    this format has no other way to write it; such a record is refused when it is read.
    """
    record: dict[str, Any] = {}
    if sample.id is not None:
        record["id"] = sample.id
    if sample.images:
        names = [name if isinstance(name, str) else data_url(name) for name in sample.images]
        record["image"] = names[0] if len(names) == 1 else names
    record["conversations"] = [
        {"from": _NAMES[turn.role], "value": turn.text} for turn in sample.turns
    ]
    return record | {key: value for key, value in sample.extra.items() if key not in _OWN_KEYS}
