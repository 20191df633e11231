"""Writes a data set with other answers: in its own format, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from purifier.data.dataset import BadRow, DataSet, read_row
from purifier.data.records import replace_answers
from purifier.data.sample import IMAGE_MARK, Place, Sample
from purifier.data.side_table import SIDE_FILE, SideRow, SideTable

NOT_PROCESSED = "not_processed"
"""Reason of a row that no change speaks of."""

UNUSABLE_ANSWER = "unusable_answer"
"""Reason of a row whose new answer is empty or holds an image mark."""

__all__ = [
    "NOT_PROCESSED",
    "SIDE_FILE",
    "UNUSABLE_ANSWER",
    "Change",
    "Scalar",
    "write_changed",
]

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Change:
    """What becomes of one row.

    Attributes:
        record: The row's number.
        answers: The new texts of all assistant turns, in order; None keeps the old ones.
        dropped: Whether the row is left out of what is written.
        side: Further columns of the side table, such as `flagged`, `mask_ratio`, `seconds` or
            the `reason` why the row is left out.
    """

    record: int
    answers: tuple[str, ...] | None = None
    dropped: bool = False
    side: Mapping[str, Scalar] = field(default_factory=dict)


def write_changed(dataset: DataSet, changes: Iterable[Change], out: Path) -> Path:
    """Writes a data set as its changes say, and a side table of all its rows.

    Records keep their format, their unknown keys and the order of both. A row that is bad, or
    that no change speaks of, is left out, and the side table says why: an answer that was not
    purified is never passed on. Images are not copied; the new file names them as the old one.

    Args:
        dataset: The original; stays as it is.
        changes: In the order of their records, at most one a record.
        out: Folder for the new label file and `side.parquet`. If it exists, it is replaced
            once all is written.

    Returns:
        The new label file; the folder if the original has several.

    Raises:
        DataError: If the original cannot be read.
        ValueError: If the changes are out of order, name a record that is not there, or have
            another number of answers than the record.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        with SideTable(part / SIDE_FILE) as side:
            editor = _Editor(iter(changes), side)
            written = dataset.file.rewrite(part, editor.edit)
            editor.finish()
        _sync(part)
        _put(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / written.relative_to(part)


class _Editor:
    """Applies the changes to the records that pass by."""

    def __init__(self, changes: Iterator[Change], side: SideTable) -> None:
        self._changes = changes
        self._side = side
        self._next = next(changes, None)

    def edit(self, place: Place, record: Any) -> Any:
        """The record to write, None to leave it out; writes the row's line of the side table."""
        change = self._take(place.record)
        row = read_row(record, place)
        side = dict(change.side) if change else {}
        if isinstance(row, BadRow):
            self._side.add(SideRow(place.record, None, side={**side, "reason": row.reason}))
            return None
        if change is None:
            side["reason"] = NOT_PROCESSED
        elif change.answers is not None:
            self._require_answers(change, row)
            if not all(text.strip() and IMAGE_MARK not in text for text in change.answers):
                side.setdefault("reason", UNUSABLE_ANSWER)
                change = None
        dropped = change is None or change.dropped
        new = row.answers if change is None or change.answers is None else change.answers
        self._side.add(SideRow(place.record, row.id, row.answers, new, dropped, side))
        if dropped:
            return None
        return record if new == row.answers else replace_answers(record, new)

    def finish(self) -> None:
        """Refuses changes that were not used."""
        if self._next is not None:
            raise ValueError(f"there is no record {self._next.record}, or it came out of order")

    def _take(self, record: int) -> Change | None:
        change = self._next
        if change is None or change.record != record:
            return None
        self._next = next(self._changes, None)
        return change

    @staticmethod
    def _require_answers(change: Change, row: Sample) -> None:
        assert change.answers is not None
        if len(change.answers) != len(row.answers):
            raise ValueError(
                f"record {change.record}: expected {len(row.answers)} answers, "
                f"got {len(change.answers)}"
            )


def _sync(folder: Path) -> None:
    """Waits until everything in a folder lies on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(part: Path, out: Path) -> None:
    """Moves a folder to its place; one that stands there is taken away first."""
    old = part.with_suffix(".old")
    if out.exists():
        os.replace(out, old)
    os.replace(part, out)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    shutil.rmtree(old, ignore_errors=True)
