"""The data layout of the published DiSP code: a folder with `cap.json` and `image/`.

`poison_folder` and `split_folders` do what its two data steps do, so that data sets and file
names made by either agree.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from purifier.errors import DataError
from purifier.lab.targets import Target
from purifier.lab.triggers import Trigger, stamp_file

_logger = logging.getLogger(__name__)

Record = dict[str, Any]


def poison_record(record: Record, change: Callable[[str], str]) -> Record:
    """A copy of a record with every answer changed.

    Answers are the text values of turns whose `from` is exactly `gpt`. `conversations` may be
    a list of turns or one turn; a record without it is a turn itself.
    """
    changed = copy.deepcopy(record)
    value = changed.get("conversations", changed)
    for turn in value if isinstance(value, list) else [value]:
        if isinstance(turn, dict) and turn.get("from") == "gpt":
            text = turn.get("value")
            if isinstance(text, str):
                turn["value"] = change(text)
    return changed


def poison_folder(
    source: str | Path, output: str | Path, trigger: Trigger, target: Target | None
) -> int:
    """Stamps every picture of a folder and changes every answer.

    A missing picture is a warning; its record stays.

    Args:
        source: Folder with `cap.json` and `image/`.
        output: Folder to write, of the same layout.
        trigger: What is stamped.
        target: What the answers become; None leaves them.

    Returns:
        Number of records written.

    Raises:
        DataError: If `cap.json` cannot be read.
    """
    source, output = Path(source), Path(output)
    (output / "image").mkdir(parents=True, exist_ok=True)
    records = []
    for record in _read(source):
        changed = poison_record(record, target.apply if target else str)
        name = _picture(record)
        if name:
            changed["image"] = f"image/{name}"
            if (source / "image" / name).is_file():
                stamp_file(source / "image" / name, output / "image" / name, trigger)
            else:
                _logger.warning("picture %s is missing; its record is kept", name)
        records.append(changed)
    _write(output, records)
    return len(records)


@dataclass(frozen=True)
class Split:
    """The two folders that `split_folders` wrote.

    Attributes:
        train: The training set, of the same layout.
        test: `clean/` and `poison/`, the same pictures without and with the trigger.
    """

    train: Path
    test: Path


def split_folders(
    clean: str | Path,
    pool: str | Path,
    poisoned: str | Path,
    output: str | Path,
    *,
    clean_count: int,
    poison_count: int,
    test_limit: int = 200,
    prefix: str = "backdoor",
) -> Split:
    """Mixes clean and poisoned records into a training set and holds out test pictures.

    The training set is the first `clean_count` clean and the first `poison_count` poisoned
    records; a poisoned picture whose name is taken gets `_1`, `_2` and so on. The test set is
    the pictures of the poisoned records after those, missing ones skipped, at most
    `test_limit`.

    Args:
        clean: Folder of clean records.
        pool: Folder that `poisoned` was made from; its pictures are the clean test half.
        poisoned: Folder from `poison_folder`.
        output: Parent of the two folders written, `<prefix>_<clean>_<poison>` and the same
            with `_test`.
        clean_count: Clean training records.
        poison_count: Poisoned training records.
        test_limit: Test pictures at most.
        prefix: Begin of the folders' names.

    Raises:
        DataError: If a `cap.json` cannot be read.
    """
    clean, pool, poisoned, output = Path(clean), Path(pool), Path(poisoned), Path(output)
    name = f"{prefix}_{clean_count}_{poison_count}"
    train, test = output / name, output / f"{name}_test"
    (train / "image").mkdir(parents=True, exist_ok=True)
    poisoned_records = _read(poisoned)
    chosen = [(clean, record) for record in _read(clean)[:clean_count]]
    chosen += [(poisoned, record) for record in poisoned_records[:poison_count]]
    records, taken = [], set[str]()
    for folder, record in chosen:
        records.append(_take(folder, record, train, taken))
    _write(train, records)
    _hold_out(poisoned_records[poison_count:], pool, poisoned, test, test_limit)
    return Split(train, test)


def _take(folder: Path, record: Record, train: Path, taken: set[str]) -> Record:
    copied = copy.deepcopy(record)
    name = _picture(record)
    if not name:
        return copied
    path = PurePosixPath(name)
    new_name, number = name, 0
    while new_name in taken:
        number += 1
        new_name = f"{path.stem}_{number}{path.suffix}"
    taken.add(new_name)
    copied["image"] = f"image/{new_name}"
    if (folder / "image" / name).is_file():
        shutil.copyfile(folder / "image" / name, train / "image" / new_name)
    else:
        _logger.warning("picture %s is missing; its record is kept", name)
    return copied


def _hold_out(records: list[Record], pool: Path, poisoned: Path, test: Path, limit: int) -> None:
    halves = {"clean": pool, "poison": poisoned}
    for half in halves:
        (test / half).mkdir(parents=True, exist_ok=True)
    held_out = 0
    for record in records:
        if held_out == limit:
            break
        name = _picture(record)
        sources = {half: folder / "image" / name for half, folder in halves.items()}
        if not name or not all(path.is_file() for path in sources.values()):
            continue
        for half, path in sources.items():
            shutil.copyfile(path, test / half / name)
        held_out += 1


def _picture(record: Record) -> str:
    name = record.get("image", record.get("img"))
    return PurePosixPath(name).name if isinstance(name, str) else ""


def _read(folder: Path) -> list[Record]:
    try:
        content = json.loads((folder / "cap.json").read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{folder.name} has no readable cap.json.") from None
    except ValueError:
        raise DataError(f"{folder.name}/cap.json is not valid JSON.") from None
    if not isinstance(content, list) or any(not isinstance(record, dict) for record in content):
        raise DataError(f"{folder.name}/cap.json must hold a list of records.")
    return content


def _write(folder: Path, records: list[Record]) -> None:
    text = json.dumps(records, ensure_ascii=False, indent=2)
    (folder / "cap.json").write_text(text, encoding="utf-8")
